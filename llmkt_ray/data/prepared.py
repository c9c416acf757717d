"""A frozen split as flat arrays: what every later stage reads, and the only place that knows which rows are test."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from llmkt_ray.artifacts import ArtifactStore

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Rows:
    """Interactions as parallel arrays, sorted by user, then by time (or original order where there is none).

    Attributes:
        user: index of the user, int32 `(n,)`, in [0, n_users).
        item: index of the item, int32 `(n,)`, in [0, n_items).
        rating: float32 `(n,)`; 1.0 throughout where the dataset has no ratings.
        timestamp: seconds since 1970, float64 `(n,)`; NaN throughout where the dataset has none.
        positive: bool `(n,)`: what ranking models train and are tested on.
        count: float32 `(n,)`: how often the user took the item; None where the dataset does not say.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray
    positive: np.ndarray
    count: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.user)

    def where(self, keep: np.ndarray) -> "Rows":
        """Returns the rows that `keep` picks: a bool mask `(n,)`, or indices in the order wanted."""
        columns: dict[str, Any] = {name: None if column is None else column[keep] for name, column in vars(self).items()}
        return Rows(**columns)

    @staticmethod
    def joined(*parts: "Rows") -> "Rows":
        """Returns the rows of several parts, in the order of rows: by user, then by time, then as the parts come."""
        rows = Rows.chained(*parts)
        by_time = () if np.isnan(rows.timestamp).any() else (rows.timestamp,)
        return rows.where(np.lexsort((*by_time, rows.user)))

    @staticmethod
    def chained(*parts: "Rows") -> "Rows":
        """Returns the rows of several parts of one split, one part after the other."""
        names = [name for name, column in vars(parts[0]).items() if column is not None]
        return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def positives(self) -> "Rows":
        """Returns the positive rows only."""
        return self.where(self.positive)


@dataclass(frozen=True)
class PreparedData:
    """One frozen split of one dataset (artifact kind "split").

    Users and items have indices 0..n-1 in the order of their sorted tokens; RecBole's internal ids are made by
    the bridge and joined by token, never by position.

    Attributes:
        key: the artifact's key.
        name: the dataset's name in the study.
        domain: "movies", "music", "books" or "generic".
        user_tokens, item_tokens: raw ids as str, `(n_users,)` and `(n_items,)`.
        train: the train rows that models may learn from (thinned by `train_share`).
        train_full: all train rows of the split: masks use these whatever the thinning.
        valid, test: the held-out rows; `test` is read by the final evaluation and by the leak certificate alone.
        users, items: feature tables with a string column `user_id` / `item_id`, in index order.
        notes: counts, provenance and warnings of the split, JSON values.
    """

    key: str
    name: str
    domain: str
    user_tokens: np.ndarray
    item_tokens: np.ndarray
    train: Rows
    train_full: Rows
    valid: Rows
    test: Rows
    users: pa.Table
    items: pa.Table
    notes: dict[str, object]

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.user_tokens)

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.item_tokens)

    def with_held_out_as_train(self) -> "PreparedData":
        """Returns this split with EVERY row as a train row: what the profiles of the control arm `leaked` are written from.

        `valid` and `test` stay, so that a leak certificate of these profiles says what leaked.
        """
        everything = Rows.joined(self.train_full, self.valid, self.test)
        return replace(self, train=everything, train_full=everything)

    @staticmethod
    def load(store: ArtifactStore, key: str) -> "PreparedData":
        """Returns a stored split, its arrays memory-mapped.

        Raises:
            ArtifactError: the artifact is missing or damaged.
        """
        arrays = store.arrays("split", key)
        users, items = store.table("split", key, "users"), store.table("split", key, "items")
        return PreparedData.assemble(key, arrays, users, items, store.document("split", key, "facts"))

    @staticmethod
    def assemble(key: str, arrays: Mapping[str, np.ndarray], users: pa.Table, items: pa.Table, facts: Mapping[str, Any]) -> "PreparedData":
        """Returns the split that the parts of its artifact make, as `split.compute_split` gives them.

        Args:
            key: the artifact's key.
            arrays: `<part>_<column>` for every part and column of `Rows` (`count` where there is one), and bool `train_kept`.
            users: features, one row a user, sorted by `user_id`.
            items: features, one row an item, sorted by `item_id`.
            facts: name, domain and notes.
        """

        def rows(part: str) -> Rows:
            names = ("user", "item", "rating", "timestamp", "positive")
            return Rows(**{name: arrays[f"{part}_{name}"] for name in names}, count=arrays.get(f"{part}_count"))

        train_full = rows("train")
        kept = arrays["train_kept"]
        return PreparedData(
            key=key,
            name=facts["name"],
            domain=facts["domain"],
            user_tokens=users.column("user_id").to_numpy().astype(np.str_),
            item_tokens=items.column("item_id").to_numpy().astype(np.str_),
            train=train_full if kept.all() else train_full.where(kept),
            train_full=train_full,
            valid=rows("valid"),
            test=rows("test"),
            users=users,
            items=items,
            notes=facts["notes"],
        )
