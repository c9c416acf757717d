"""What an encoder does not read of texts is counted, and said where it matters."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.encode import encode
from llmkt_ray.embeddings.encoders import encoder_of
from llmkt_ray.embeddings.item_mean import encode_item_means
from llmkt_ray.embeddings.limits import NOTES, cut_notes, cut_sentence, most_tokens
from llmkt_ray.embeddings.vectors import Embeddings
from llmkt_ray.profiles.generate import generate
from llmkt_ray.study import EmbeddingConfig, ProfileConfig

SHORT, LONG = "drama " * 254, "drama " * 300
"""Words of one token each; MiniLM reads 256 with its two markers."""


def test_what_is_cut_is_what_no_vector_knows() -> None:
    encoder = encoder_of(EmbeddingConfig())
    one, other = encoder.encode([SHORT + "western", SHORT + "horror films of old"])
    np.testing.assert_array_equal(one, other)
    assert cut_notes(EmbeddingConfig(), [SHORT])["texts_cut"] == 0
    assert cut_notes(EmbeddingConfig(), [SHORT + "western"])["texts_cut"] == 1


@pytest.mark.parametrize(
    ("changes", "limit", "texts_cut", "tokens_not_read"),
    [
        ({}, 256, 1 / 3, 46),
        ({"via": "vllm"}, 256, 1 / 3, 46),
        ({"max_tokens": 512}, 512, 0, 0),
        ({"prefix": "query: "}, 256, 2 / 3, 2 + 48),
        ({"max_tokens": 100}, 100, 2 / 3, 156 + 202),
        ({"via": "vllm", "engine": {"max_model_len": 102}}, 102, 2 / 3, 154 + 200),
    ],
)
def test_shares_are_those_of_texts_and_of_all_tokens(
    changes: dict[str, object], limit: int, texts_cut: float, tokens_not_read: int
) -> None:
    config = EmbeddingConfig(**changes)  # type: ignore[arg-type]
    every = 254 + 300 + 1 + (6 if config.prefix else 0)
    notes = cut_notes(config, [SHORT, LONG, "drama"])
    most = 512 if config.via == "local" else limit
    assert notes == {"tokens_read": limit, "tokens_possible": most, "texts_cut": texts_cut, "tokens_cut": tokens_not_read / every}


def test_a_model_that_counts_positions_from_the_padding_holds_two_less(tmp_path: Path) -> None:
    def holds(**settings: object) -> int | None:
        (tmp_path / "config.json").write_text(json.dumps(settings))
        return most_tokens(EmbeddingConfig(), tmp_path)

    assert holds(model_type="roberta", max_position_embeddings=514, pad_token_id=1) == 512
    assert holds(model_type="bert", max_position_embeddings=512, pad_token_id=0) == 512
    assert holds(model_type="t5") is None
    assert holds(model_type="xlnet", max_position_embeddings=-1) is None


def test_embeddings_are_stored_with_it_and_earlier_ones_still_load(data: PreparedData, store: ArtifactStore) -> None:
    profiles = generate(ProfileConfig(llm="template"), data, store, study_seed=1)
    texts = pa.array([LONG, *["drama"] * 39])
    profiles = replace(profiles, key="long", table=profiles.table.set_column(1, "profile", texts))
    embeddings = encode(EmbeddingConfig(), profiles, store)
    manifest = store.manifest("embeddings", embeddings.key)
    assert manifest.notes["texts_cut"] == 1 / 40
    assert manifest.notes["tokens_cut"] == 46 / 339
    without = {name: value for name, value in manifest.notes.items() if name not in NOTES}
    users = pa.table({"user_id": embeddings.user_ids.tolist(), "text_sha256": embeddings.text_hashes.tolist()})
    store.save("embeddings", "earlier", inputs={}, arrays={"vectors": embeddings.vectors}, tables={"users": users}, notes=without)
    assert len(Embeddings.load(store, "earlier").vectors) == 40
    assert cut_sentence(without, "m", "e") is None
    tfidf = encode(EmbeddingConfig(encoder="tfidf_svd", dims=2), generate(ProfileConfig(llm="template"), data, store, study_seed=1), store)
    assert not {*NOTES} & {*store.manifest("embeddings", tfidf.key).notes}


def test_means_of_items_say_what_was_not_read_of_their_texts(data: PreparedData, store: ArtifactStore) -> None:
    means = encode_item_means(EmbeddingConfig(max_tokens=8), data, store)
    notes = store.manifest("embeddings", means.key).notes
    assert notes["tokens_read"] == 8
    assert 0 < notes["texts_cut"] <= 1


def test_the_sentence_says_what_to_do() -> None:
    notes = dict(zip(NOTES, (256, 512, 0.995, 0.43), strict=True))
    assert cut_sentence(notes, "gpt", "MiniLM") == (
        "99.5% of the texts of gpt are longer than the 256 tokens that MiniLM reads, and 43.0% of all their tokens are not read: "
        "set embedding.max_tokens: 512"
    )
    assert str(cut_sentence({**notes, "tokens_read": 512}, "gpt", "MiniLM")).endswith("take an encoder that reads more")
    assert cut_sentence({**notes, "tokens_cut": 0.001}, "gpt", "MiniLM") is None
