"""Knowledge vectors of users and items, as KAR reads them: the encoder's own, not reduced, because its adaptor does that."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.seeds import content_key

KIND = "knowledge"
KNOWLEDGE_VERSION = 1
"""Part of every key; rises when a change of ours alters vectors."""


@dataclass(frozen=True)
class Knowledge:
    """What KAR's adaptor reads (artifact kind "knowledge"); standardised per dimension, zeros where nothing is known.

    Attributes:
        key: the artifact's key.
        users: float32 `(n_users, dims)`, in the index order of the split.
        items: float32 `(n_items, dims)`.
        user_tokens, item_tokens: raw ids of the rows.
    """

    key: str
    users: np.ndarray
    items: np.ndarray
    user_tokens: np.ndarray
    item_tokens: np.ndarray

    @staticmethod
    def load(store: ArtifactStore, key: str) -> "Knowledge":
        """Returns stored vectors, memory-mapped.

        Raises:
            ArtifactError: the artifact is missing or damaged.
        """
        arrays = store.arrays(KIND, key)
        users = store.table(KIND, key, "users").column("user_id").to_pylist()
        items = store.table(KIND, key, "items").column("item_id").to_pylist()
        return Knowledge(key, arrays["users"], arrays["items"], np.asarray(users, dtype=np.str_), np.asarray(items, dtype=np.str_))


def knowledge_key(embeddings_key: str, item_texts_key: str) -> str:
    """Returns the key of the vectors of these profiles and these item texts by the profiles' encoder."""
    return content_key(knowledge_inputs(embeddings_key, item_texts_key))


def knowledge_inputs(embeddings_key: str, item_texts_key: str) -> dict[str, Any]:
    """Returns what the key is made of."""
    return {"version": KNOWLEDGE_VERSION, "embeddings": embeddings_key, "item_texts": item_texts_key}
