from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings import encode as module
from llmkt_ray.embeddings.encode import embeddings_key, encode, fixed_batches
from llmkt_ray.embeddings.encoders import encoder_identity, encoder_of, encoder_width
from llmkt_ray.embeddings.vectors import Embeddings
from llmkt_ray.errors import EmbeddingError
from llmkt_ray.profiles.generate import generate
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.study import EmbeddingConfig, ProfileConfig

TFIDF = EmbeddingConfig(encoder="tfidf_svd", dims=8)


@pytest.fixture
def profiles(data: PreparedData, store: ArtifactStore) -> Profiles:
    return generate(ProfileConfig(llm="template"), data, store, study_seed=1)


def test_batches_depend_on_the_set_of_texts_alone() -> None:
    texts = [f"text {i}" for i in range(50)]
    once = fixed_batches(texts, 8)
    assert fixed_batches([*reversed(texts), *texts[:7]], 8) == once
    assert [len(batch) for batch in once] == [8] * 6 + [2]
    assert sorted(text for batch in once for text in batch) == sorted(texts)


def test_minilm_vectors_are_the_official_ones() -> None:
    """Equal to the model's own definition computed by hand: mean of the last layer over tokens, scaled to length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from llmkt_ray.embeddings.weights import MINILM, find_weights

    texts = ["This user likes Drama (49%).", "A user who loves horror films of the 1980s and westerns."]
    folder = find_weights(MINILM).folder
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder, use_safetensors=True)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None].float()
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
    np.testing.assert_allclose(encoder_of(EmbeddingConfig()).encode(texts), expected, atol=1e-6)


def test_order_of_users_and_repeated_texts_do_not_change_a_float(profiles: Profiles, store: ArtifactStore, tmp_path: Path) -> None:
    few = profiles.table.slice(0, 20)
    config = EmbeddingConfig(batch_size=8)
    once = encode(config, replace(profiles, key="once", table=few), store)
    mixed = pa.concat_tables([few.take(list(reversed(range(20))))])
    again = encode(config, replace(profiles, key="again", table=mixed), ArtifactStore(tmp_path / "elsewhere"))
    assert again.user_ids.tolist() == once.user_ids.tolist()[::-1]
    np.testing.assert_array_equal(again.vectors[::-1], once.vectors)
    np.testing.assert_allclose(np.linalg.norm(once.vectors, axis=1), 1, atol=1e-5)


def test_users_without_a_text_have_no_row(profiles: Profiles, store: ArtifactStore) -> None:
    texts = profiles.table.column("profile").to_pylist()
    texts[3] = None
    table = profiles.table.set_column(1, "profile", pa.array(texts, pa.string()))
    embeddings = encode(TFIDF, replace(profiles, key="partial", table=table), store)
    assert embeddings.vectors.shape == (39, 8)
    assert "u03" not in embeddings.user_ids


class _Counting:
    """Counts the texts that reach the real encoder."""

    def __init__(self, config: EmbeddingConfig, seen: list[str]) -> None:
        self._encoder, self._seen = encoder_of(config), seen

    def encode(self, texts: list[str]) -> np.ndarray:
        self._seen += texts
        return self._encoder.encode(texts)


def test_a_text_that_did_not_change_is_not_embedded_again(
    profiles: Profiles, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module, "encoder_of", lambda config, device="cpu": _Counting(config, seen))
    config = EmbeddingConfig(batch_size=8)
    few = replace(profiles, key="first", table=profiles.table.slice(0, 12))
    first = encode(config, few, store)
    assert len(seen) == 12
    # Another choice of LLM, or the same generated again: all texts are as they were but two, and a user is new.
    texts = profiles.table.slice(0, 13).column("profile").to_pylist()
    texts[3], texts[7] = "Likes westerns.", "Likes horror."
    changed = profiles.table.slice(0, 13).set_column(1, "profile", pa.array(texts, pa.string()))
    second = encode(config, replace(profiles, key="second", table=changed), store)
    assert sorted(seen[12:]) == sorted([texts[3], texts[7], texts[12]])
    kept = [row for row in range(12) if row not in (3, 7)]
    np.testing.assert_array_equal(second.vectors[kept], first.vectors[kept])
    assert store.manifest("embeddings", second.key).notes["texts_embedded_before"] == 10
    # Nothing new, no encoder; another prefix, all of them.
    monkeypatch.setattr(module, "encoder_of", lambda *given: pytest.fail("an encoder was loaded for nothing"))
    third = encode(config, replace(profiles, key="third", table=changed.slice(1, 9)), store)
    np.testing.assert_array_equal(third.vectors, second.vectors[1:10])
    monkeypatch.setattr(module, "encoder_of", lambda config, device="cpu": _Counting(config, seen))
    encode(EmbeddingConfig(batch_size=8, prefix="query: "), few, store)
    assert len(seen) == 12 + 3 + 12


def test_stored_vectors_are_used_again(profiles: Profiles, store: ArtifactStore) -> None:
    first = encode(TFIDF, profiles, store)
    created = store.manifest("embeddings", first.key)
    done: list[tuple[int, int]] = []
    second = encode(TFIDF, profiles, store, progress=lambda n, total: done.append((n, total)))
    assert store.manifest("embeddings", first.key) == created
    assert not done
    np.testing.assert_array_equal(first.vectors, second.vectors)


def test_vectors_of_texts_that_were_written_anew_are_not_used(profiles: Profiles, store: ArtifactStore) -> None:
    first = encode(TFIDF, profiles, store)
    texts = ["Likes westerns alone.", *profiles.table.column("profile").to_pylist()[1:]]
    anew = replace(profiles, table=profiles.table.set_column(1, "profile", pa.array(texts, pa.string())))
    second = encode(TFIDF, anew, store)
    assert second.key == first.key
    assert second.text_hashes[0] != first.text_hashes[0]
    np.testing.assert_array_equal(second.text_hashes, Embeddings.load(store, first.key).text_hashes)


def test_identity_is_in_the_key(profiles: Profiles) -> None:
    configs = [TFIDF, EmbeddingConfig(encoder="tfidf_svd", dims=9), EmbeddingConfig(), EmbeddingConfig(prefix="passage: ")]
    configs += [EmbeddingConfig(max_tokens=32), EmbeddingConfig(batch_size=16)]
    keys = {embeddings_key(profiles.key, encoder_identity(config)) for config in configs}
    assert len(keys) == len(configs)
    assert embeddings_key("other", encoder_identity(TFIDF)) not in keys


def test_prefix_and_cut_change_the_vectors() -> None:
    text = ["This user likes Drama and slow films " * 20]
    plain = encoder_of(EmbeddingConfig()).encode(text)
    assert not np.allclose(encoder_of(EmbeddingConfig(prefix="query: ")).encode(text), plain, atol=1e-3)
    assert not np.allclose(encoder_of(EmbeddingConfig(max_tokens=16)).encode(text), plain, atol=1e-3)


def test_nan_in_embeddings_stops_with_the_users(profiles: Profiles, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def encode(self, texts: list[str]) -> np.ndarray:
            vectors = np.ones((len(texts), 4), np.float32)
            vectors[5] = np.nan
            return vectors

    def broken(*args: Any) -> Broken:
        return Broken()

    monkeypatch.setattr(module, "encoder_of", broken)
    with pytest.raises(EmbeddingError, match=r"'tfidf_svd' gave NaN or infinite values for 1 of 40 texts \(of 'u\d\d'\)"):
        encode(TFIDF, profiles, store)
    assert store.files.list("embeddings", recursive=True) == []


def test_tfidf_svd_tells_different_tastes_apart(profiles: Profiles, store: ArtifactStore) -> None:
    vectors = encode(TFIDF, profiles, store).vectors
    same = np.arange(40)[:, None] % 6 == np.arange(40)[None, :] % 6
    cosines = vectors @ vectors.T
    assert cosines[same].mean() > cosines[~same].mean() + 0.2


@pytest.mark.parametrize(("texts", "message"), [(["a b", "c d"], "at most 1|no word"), (["!", "?"], "no word")])
def test_tfidf_svd_with_too_little_text(texts: list[str], message: str) -> None:
    with pytest.raises(EmbeddingError, match=message):
        encoder_of(TFIDF).encode(texts)


def test_width_is_known_before_anything_is_encoded() -> None:
    assert encoder_width(TFIDF) == 8
    assert encoder_width(EmbeddingConfig()) == encoder_of(EmbeddingConfig()).encode(["text"]).shape[1] == 384
    assert encoder_width(EmbeddingConfig(encoder="text-embedding-ada-002", via="openai")) == 1536
    assert encoder_width(EmbeddingConfig(encoder="own", via="openai")) is None
