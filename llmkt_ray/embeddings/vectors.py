"""Vectors of profile texts as they are stored, and the checks on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.raw import shown
from llmkt_ray.errors import EmbeddingError

KIND = "embeddings"


@dataclass(frozen=True)
class Embeddings:
    """Vectors of the users that have a profile, or of the items that have a text (artifact kind "embeddings").

    Attributes:
        key: the artifact's key.
        vectors: float32 `(n, dim)`.
        user_ids: raw ids `(n,)`, the user (or item) of each row.
        text_hashes: SHA-256 of the text of each row `(n,)`.
    """

    key: str
    vectors: np.ndarray
    user_ids: np.ndarray
    text_hashes: np.ndarray

    @staticmethod
    def load(store: ArtifactStore, key: str) -> "Embeddings":
        """Returns stored embeddings, memory-mapped.

        Raises:
            ArtifactError: the artifact is missing or damaged.
        """
        users = store.table(KIND, key, "users")
        return Embeddings(
            key,
            store.arrays(KIND, key)["vectors"],
            np.asarray(users.column("user_id").to_pylist(), dtype=np.str_),
            np.asarray(users.column("text_sha256").to_pylist(), dtype=np.str_),
        )


def text_hash(text: str) -> str:
    """Returns the SHA-256 of a text, in hex."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_finite(matrix: np.ndarray, ids: Sequence[str], encoder: str) -> None:
    """Checks that no vector holds NaN or infinity.

    Raises:
        EmbeddingError: some do; it names users or items.
    """
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise EmbeddingError(
            f"encoder {encoder!r} gave NaN or infinite values for {len(bad):,} of {len(matrix):,} texts "
            f"(of {shown((ids[i] for i in bad), 5)}); look at them, or use another encoder or full precision"
        )
