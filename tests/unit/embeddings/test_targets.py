from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.encode import encode
from llmkt_ray.embeddings.targets import Targets, check_users, make_targets, standardize, targets_key
from llmkt_ray.embeddings.vectors import Embeddings, text_hash
from llmkt_ray.errors import EmbeddingError
from llmkt_ray.profiles.generate import generate
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.study import EmbeddingConfig, ProfileConfig, ReductionConfig

PCA = ReductionConfig(method="pca")
Make = Callable[..., Targets]


@pytest.fixture
def profiles(data: PreparedData, store: ArtifactStore) -> Profiles:
    return generate(ProfileConfig(llm="template"), data, store, study_seed=1)


@pytest.fixture
def embeddings(profiles: Profiles, store: ArtifactStore) -> Embeddings:
    return encode(EmbeddingConfig(encoder="tfidf_svd", dims=16), profiles, store)


@pytest.fixture
def make(data: PreparedData, store: ArtifactStore, embeddings: Embeddings) -> Make:
    def build(key: str = embeddings.key, reduction: ReductionConfig = PCA, dims: int = 4, seed: int = 1) -> Targets:
        return make_targets(embeddings_key=key, data=data, reduction=reduction, dims=dims, study_seed=seed, store=store)

    return build


def _store_as(store: ArtifactStore, key: str, like: Embeddings, order: np.ndarray, *, vectors: np.ndarray | None = None) -> str:
    """Stores embeddings whose id list (and hashes with `vectors` None) stand in another order than the vectors."""
    ids = like.user_ids[order]
    hashes = like.text_hashes[order] if vectors is not None else like.text_hashes
    store.save(
        "embeddings",
        key,
        inputs=store.manifest("embeddings", like.key).inputs,
        arrays={"vectors": like.vectors if vectors is None else vectors},
        tables={"users": pa.table({"user_id": ids.tolist(), "text_sha256": hashes.tolist()})},
    )
    return key


def test_trap_03_targets_are_standardised_per_dimension(make: Make) -> None:
    targets = make()
    np.testing.assert_allclose(targets.matrix.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(targets.matrix.std(axis=0), 1, atol=1e-5)
    raw = make(reduction=PCA.model_copy(update={"standardize": False}))
    assert raw.matrix.std(axis=0).max() < 0.9
    np.testing.assert_allclose(standardize(raw.matrix.astype(float))[0], targets.matrix, atol=1e-4)


def test_trap_05_targets_are_joined_by_token_whatever_the_order_of_rows(
    make: Make, store: ArtifactStore, embeddings: Embeddings, data: PreparedData
) -> None:
    """Published code takes row u of the profile matrix for user u, which is right only if the rows happen to be in that order."""
    order = np.random.default_rng(1).permutation(len(embeddings.user_ids))
    mixed = make(key=_store_as(store, "mixed", embeddings, order, vectors=embeddings.vectors[order]))
    # Equal but for the sign of an axis: a PCA of reordered rows is the same up to that.
    plain = make()
    sign = np.sign((mixed.matrix * plain.matrix).sum(axis=0))
    np.testing.assert_allclose(mixed.matrix * sign, plain.matrix, atol=1e-3)
    assert mixed.user_tokens.tolist() == data.user_tokens.tolist()


def test_a_planted_permutation_of_ids_is_caught(make: Make, store: ArtifactStore, embeddings: Embeddings) -> None:
    order = np.arange(len(embeddings.user_ids))
    order[[2, 7]] = order[[7, 2]]
    with pytest.raises(EmbeddingError, match=r"other texts than the profiles of 2 users \('u07', 'u02'\): ids and vectors were permuted"):
        make(key=_store_as(store, "permuted", embeddings, order))


def test_targets_of_permuted_users_are_caught(make: Make, data: PreparedData) -> None:
    targets = make()
    check_users(targets, data)
    with pytest.raises(EmbeddingError, match="the same users in another order"):
        check_users(replace(targets, user_tokens=targets.user_tokens[::-1]), data)
    with pytest.raises(EmbeddingError, match="39 users, others than the 40 of the split"):
        check_users(replace(targets, user_tokens=targets.user_tokens[1:]), data)


def test_users_without_a_profile_are_masked(data: PreparedData, store: ArtifactStore, profiles: Profiles) -> None:
    texts = profiles.table.column("profile").to_pylist()
    texts[3] = texts[11] = None
    table = profiles.table.set_column(1, "profile", pa.array(texts, pa.string()))
    manifest = store.manifest("profiles", profiles.key)
    store.save("profiles", "partial", inputs={}, tables={"profiles": table}, notes=manifest.notes)
    embeddings = encode(EmbeddingConfig(encoder="tfidf_svd", dims=16), Profiles.load(store, "partial"), store)
    targets = make_targets(embeddings_key=embeddings.key, data=data, reduction=PCA, dims=4, study_seed=1, store=store)
    assert np.flatnonzero(~targets.present).tolist() == [3, 11]
    assert not targets.matrix[~targets.present].any()
    assert targets.notes["without_profile"] == 2
    np.testing.assert_allclose(targets.matrix[targets.present].mean(axis=0), 0, atol=1e-5)


def test_users_without_train_rows_do_not_shape_the_reducer(data: PreparedData, store: ArtifactStore, embeddings: Embeddings) -> None:
    thin = replace(data, train_full=data.train_full.where(data.train_full.user != 6))
    targets = make_targets(embeddings_key=embeddings.key, data=thin, reduction=PCA, dims=4, study_seed=1, store=store)
    assert not targets.present[6]
    assert targets.notes["without_train_rows"] == 1
    np.testing.assert_allclose(targets.matrix[targets.present].std(axis=0), 1, atol=1e-5)


def test_stored_targets_are_used_again_and_keyed_by_what_determines_them(make: Make, store: ArtifactStore, embeddings: Embeddings) -> None:
    first = make()
    created = store.manifest("targets", first.key)
    assert make().key == first.key
    assert store.manifest("targets", first.key) == created
    keys = {
        targets_key(embeddings.key, PCA, 4, 1),
        targets_key("other", PCA, 4, 1),
        targets_key(embeddings.key, PCA, 5, 1),
        targets_key(embeddings.key, PCA, 4, 2),
        targets_key(embeddings.key, ReductionConfig(method="umap"), 4, 1),
        targets_key(embeddings.key, ReductionConfig(method="umap", n_neighbors=5), 4, 1),
        targets_key(embeddings.key, PCA.model_copy(update={"standardize": False}), 4, 1),
    }
    assert len(keys) == 7
    # What another reducer reads does not make these anew.
    assert targets_key(embeddings.key, ReductionConfig(method="pca", n_neighbors=5), 4, 1) == first.key
    assert {"trustworthiness", "knn_overlap", "reconstruction_r2"} <= set(first.notes)


def test_fidelity_is_that_of_the_target_that_is_learned(make: Make) -> None:
    """Standardising the principal components whitens them: the same target as pca_whiten's, and so the same figures."""
    plain, white = make(dims=12), make(dims=12, reduction=ReductionConfig(method="pca_whiten"))
    np.testing.assert_allclose(plain.matrix, white.matrix, atol=1e-4)
    as_it_is = make(dims=12, reduction=PCA.model_copy(update={"standardize": False}))
    for name in ("trustworthiness", "knn_overlap"):
        assert plain.notes[name] == pytest.approx(white.notes[name], abs=1e-6)
        assert as_it_is.notes[name] > plain.notes[name] + 0.01
    of_all = [notes["geometry"]["knn_overlap"]["all"] for notes in (plain.notes, white.notes)]
    assert of_all[0] == pytest.approx(of_all[1], abs=1e-6)


def test_nan_in_stored_embeddings(make: Make, store: ArtifactStore, embeddings: Embeddings) -> None:
    vectors = np.array(embeddings.vectors)
    vectors[4, 2] = np.nan
    with pytest.raises(EmbeddingError, match=r"NaN or infinite values for 1 of 40 texts \(of 'u04'\)"):
        make(key=_store_as(store, "nan", embeddings, np.arange(40), vectors=vectors))


def test_d_too_large(make: Make) -> None:
    with pytest.raises(EmbeddingError, match="cannot make 17 dims of an encoder with 16 dims and 40 users"):
        make(dims=17)


def test_dead_dimensions_stay_dead() -> None:
    matrix = np.random.default_rng(0).standard_normal((50, 3))
    matrix[:, 1] = 0.25 + 1e-9 * matrix[:, 1]
    standard, constant = standardize(matrix)
    assert constant == 1
    assert not standard[:, 1].any()
    np.testing.assert_allclose(standard[:, [0, 2]].std(axis=0), 1)


def test_text_hash_takes_any_text() -> None:
    assert text_hash("\ud800") != text_hash("?")
