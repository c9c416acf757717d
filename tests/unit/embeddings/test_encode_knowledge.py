"""What KAR reads: the texts of items are embedded once, whoever wrote about the users, and one user can be taken out of it."""

import numpy as np
import pyarrow as pa
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings import encode as module
from llmkt_ray.embeddings.encode import encode
from llmkt_ray.embeddings.encode_knowledge import make_knowledge
from llmkt_ray.embeddings.encoders import encoder_of
from llmkt_ray.embeddings.forget import forget
from llmkt_ray.embeddings.knowledge import Knowledge
from llmkt_ray.profiles.generate import generate
from llmkt_ray.profiles.items import ItemTexts
from llmkt_ray.study import EmbeddingConfig, ProfileConfig

CONFIG = EmbeddingConfig(batch_size=8)


def test_items_are_embedded_once_and_a_user_can_be_forgotten(
    data: PreparedData, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = data.item_tokens.tolist()
    table = pa.table({"item_id": ids, "text": [None, *(f"A film called {name}." for name in ids[1:])]})
    texts, seen = ItemTexts("items", table), list[str]()

    class Counting:
        def __init__(self, config: EmbeddingConfig) -> None:
            self._encoder = encoder_of(config)

        def encode(self, batch: list[str]) -> np.ndarray:
            seen.extend(batch)
            return self._encoder.encode(batch)

    monkeypatch.setattr(module, "encoder_of", lambda config, device="cpu": Counting(config))
    first, second = (
        make_knowledge(CONFIG, embeddings_key=encode(CONFIG, profiles, store).key, texts=texts, data=data, store=store)
        for profiles in (generate(ProfileConfig(llm="template", full_history=full), data, store, study_seed=1) for full in (False, True))
    )
    assert first.key != second.key
    assert sum(text.startswith("A film called") for text in seen) == len(ids) - 1
    np.testing.assert_array_equal(first.items, second.items)
    assert not first.items[0].any()
    alone = encoder_of(CONFIG).encode([f"A film called {ids[7]}."])[0]
    others = np.delete(first.items, 0, axis=0)
    assert np.argmax(np.corrcoef(others, alone)[-1, :-1]) == 6, "rows are joined to items by their id"

    # An item whose id is that of a user stays when the user goes.
    user = data.user_tokens.tolist().index("u05")
    [profiles_key] = [
        manifest.inputs["profiles"]
        for manifest in store.manifests("embeddings")
        if manifest.key == store.manifest("knowledge", first.key).inputs["embeddings"]
    ]
    before = np.array(first.users)
    assert forget(store, [profiles_key], "u05").targets == 1
    left = Knowledge.load(store, first.key)
    assert not left.users[user].any()
    np.testing.assert_array_equal(np.delete(left.users, user, axis=0), np.delete(before, user, axis=0))
    np.testing.assert_array_equal(left.items, second.items)
    assert Knowledge.load(store, second.key).users[user].any(), "another set of texts was not asked for"
    assert forget(store, [profiles_key], "u05").targets == 0
