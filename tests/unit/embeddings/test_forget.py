"""One user's text and what was made of it leave the store; everybody else's stays to the bit."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmkt_ray.artifacts import ArtifactStore, FileStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.encode import encode
from llmkt_ray.embeddings.forget import FORGOTTEN, Forgotten, forget
from llmkt_ray.embeddings.targets import Targets, make_targets
from llmkt_ray.embeddings.vectors import Embeddings
from llmkt_ray.errors import ArtifactError, StorageError
from llmkt_ray.profiles.generate import generate
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.table import ProfileRow, Profiles
from llmkt_ray.study import EmbeddingConfig, ProfileConfig, ReductionConfig

USER = "u05"


@pytest.fixture
def made(data: PreparedData, store: ArtifactStore) -> tuple[Profiles, Embeddings, Targets]:
    profiles = generate(ProfileConfig(llm="template"), data, store, study_seed=1)
    embeddings = encode(EmbeddingConfig(encoder="tfidf_svd", dims=8), profiles, store)
    targets = make_targets(
        embeddings_key=embeddings.key, data=data, reduction=ReductionConfig(method="pca"), dims=4, study_seed=1, store=store
    )
    return profiles, embeddings, targets


def test_a_user_is_forgotten_and_nobody_else(made: tuple[Profiles, Embeddings, Targets], data: PreparedData, store: ArtifactStore) -> None:
    profiles, embeddings, targets = made
    user = data.user_tokens.tolist().index(USER)
    text = profiles.table.column("profile").to_pylist()[user]
    vectors, matrix = np.array(embeddings.vectors), np.array(targets.matrix)
    assert forget(store, [profiles.key, "absent"], USER) == Forgotten(texts=1, parts=0, embeddings=1, targets=1)

    after = Profiles.load(store, profiles.key)
    row = after.table.to_pylist()[user]
    assert (row["profile"], row["error"], row["prompt_hash"]) == (None, FORGOTTEN, None)
    assert after.coverage == 39 / 40
    assert after.table.filter(np.arange(40) != user).equals(profiles.table.filter(np.arange(40) != user))
    kept = Embeddings.load(store, embeddings.key)
    assert np.array_equal(kept.vectors, vectors[embeddings.user_ids != USER])
    assert USER not in kept.user_ids
    left = Targets.load(store, targets.key)
    assert not left.present[user]
    assert not left.matrix[user].any()
    others = np.arange(data.n_users) != user
    assert np.array_equal(left.matrix[others], matrix[others])
    assert left.present[others].all()
    for name in store.files.list("", recursive=True):
        content = store.files.read_bytes(name) or b""
        if name.endswith(".parquet"):
            content = repr(pq.read_table(io.BytesIO(content)).to_pylist()).encode()
        assert repr(text)[1:-1].encode() not in content, name

    # A second call finds nothing, and a run makes nothing anew.
    assert forget(store, [profiles.key], USER) == Forgotten(0, 0, 0, 0)
    again = generate(ProfileConfig(llm="template"), data, store, study_seed=1)
    assert again.table.equals(after.table)
    assert len(encode(EmbeddingConfig(encoder="tfidf_svd", dims=8), again, store).vectors) == 39


def test_unfinished_profiles_forget_too_and_do_not_ask_again(store: ArtifactStore) -> None:
    parts = Parts(store, "k")
    rows = [ProfileRow(user, f"text of {user}", "m", "1", 3, prompt_hash=f"h{user}", attempts=1) for user in ("a", "b")]
    parts.append(rows)
    assert forget(store, ["k"], "a").parts == 1
    left = parts.finished()
    assert left["b", "hb"] == rows[1]
    assert (left["a", "ha"].profile, left["a", "ha"].error) == (None, FORGOTTEN)
    assert left["a", "ha"].attempts > 10  # the most that a study may ask for


@pytest.mark.parametrize("kind", ["profiles", "embeddings", "targets"])
def test_forgetting_goes_on_after_an_interruption_at_any_file(
    made: tuple[Profiles, Embeddings, Targets], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write = FileStore.write_bytes

    def full(self: FileStore, name: str, data: bytes) -> None:
        if name.startswith(kind) and name.endswith("manifest.json"):
            raise StorageError("no space left")
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "write_bytes", full)
        with pytest.raises(StorageError):
            forget(store, [made[0].key], USER)
    assert all(store.find(which, each.key) for which, each in zip(("profiles", "embeddings", "targets"), made, strict=True))
    assert forget(store, [made[0].key], USER).texts == 1
    assert USER not in Embeddings.load(store, made[1].key).user_ids
    assert not Targets.load(store, made[2].key).present[made[0].table.column("user_id").to_pylist().index(USER)]
    kept = {kind: len(store.files.list(f"{kind}/{key}")) for kind, key in (("profiles", made[0].key), ("embeddings", made[1].key))}
    assert kept == {"profiles": 2, "embeddings": 3}, "no former file is left"


def test_what_is_damaged_is_deleted_or_refused(made: tuple[Profiles, Embeddings, Targets], store: ArtifactStore) -> None:
    profiles, _, targets = made
    store.files.write_bytes(f"targets/{targets.key}/arrays.safetensors", b"damaged")
    assert forget(store, [profiles.key], USER) == Forgotten(texts=1, parts=0, embeddings=1, targets=0)
    assert not store.files.list(f"targets/{targets.key}")
    (name,) = (name for name in store.files.list(f"profiles/{profiles.key}") if name.endswith(".parquet"))
    store.files.write_bytes(name, b"damaged")
    with pytest.raises(ArtifactError, match="is damaged: which text is the user's cannot be told"):
        forget(store, [profiles.key], USER)
