"""Histories: each user's train rows with what is known of the items, the only thing that a profile may be written from."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llmkt_ray.data.fields import ITEM_FIELDS, LIST_FIELDS
from llmkt_ray.data.prepared import PreparedData


@dataclass(frozen=True)
class Item:
    """What is known of one item; None or () where the dataset does not say. All of it is untrusted text.

    Attributes:
        item_id: raw id.
        genres, category: several values an item.
    """

    item_id: str
    title: str | None
    year: str | None
    genres: tuple[str, ...]
    creator: str | None
    category: tuple[str, ...]
    description: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One train row of one user.

    Attributes:
        index: the item's index in the split.
        item: what is known of it.
        rating: None where the dataset has no ratings.
        timestamp: seconds since 1970; None where the dataset has none.
        count: how often the user took the item; None where the dataset does not say.
    """

    index: int
    item: Item
    rating: float | None
    timestamp: float | None
    count: float | None = None


@dataclass(frozen=True)
class Histories:
    """The train rows of every user of a split, as flat arrays and a table of items.

    Attributes:
        user_tokens: raw ids `(n_users,)`.
        starts: int64 `(n_users + 1,)`: the rows of user u are `starts[u]:starts[u + 1]`.
        item_index: int32 `(n,)`, oldest row first where there are timestamps, else in the order of the source.
        rating: float32 `(n,)`, or None where the dataset has no ratings.
        timestamp: float64 `(n,)`, seconds since 1970, or None.
        items: what is known of each item, in index order.
        count: float32 `(n,)`, or None where the dataset does not say how often.
    """

    user_tokens: np.ndarray
    starts: np.ndarray
    item_index: np.ndarray
    rating: np.ndarray | None
    timestamp: np.ndarray | None
    items: tuple[Item, ...]
    count: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of users, those without a history included."""
        return len(self.user_tokens)

    def of(self, user: int) -> tuple[Entry, ...]:
        """Returns the history of the user with index `user`, oldest first; empty where there is none."""
        rows = slice(int(self.starts[user]), int(self.starts[user + 1]))
        indices = self.item_index[rows].tolist()
        known = [[None] * len(indices) if column is None else column[rows].tolist() for column in (self.rating, self.timestamp, self.count)]
        return tuple(Entry(index, self.items[index], *facts) for index, *facts in zip(indices, *known, strict=True))

    def __iter__(self) -> Iterator[tuple[str, tuple[Entry, ...]]]:
        """Yields (raw user id, history) in index order."""
        return ((str(token), self.of(user)) for user, token in enumerate(self.user_tokens))

    def sizes(self) -> np.ndarray:
        """Returns int64 `(n_users,)`: the number of rows of each history."""
        return np.asarray(np.diff(self.starts))

    def without(self) -> np.ndarray:
        """Returns the indices of users without a history: they can have no profile."""
        return np.flatnonzero(self.sizes() == 0)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the user and item indices of all rows, for `leaks.verify`."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.sizes()), self.item_index


def histories(data: PreparedData, *, full: bool = False) -> Histories:
    """Returns the histories of a split, from its train rows and nothing else.

    Args:
        data: the split; its `valid` and `test` are not looked at.
        full: from the full train split although the data is thinned by `train_share`.
    """
    rows = data.train_full if full else data.train
    counts = np.bincount(rows.user, minlength=data.n_users)
    return Histories(
        user_tokens=data.user_tokens,
        starts=np.concatenate([[0], np.cumsum(counts)]),
        item_index=rows.item,
        rating=rows.rating if data.notes["has_ratings"] else None,
        timestamp=rows.timestamp if data.notes["has_timestamps"] else None,
        items=item_facts(data.items),
        count=rows.count,
    )


def item_facts(items: pa.Table) -> tuple[Item, ...]:
    """Returns what a table of items says of each, in the order of its rows."""
    columns = {}
    for field in ITEM_FIELDS:
        empty = () if field in LIST_FIELDS else None
        values = items.column(field).to_pylist() if field in items.column_names else [None] * len(items)
        columns[field] = [tuple(value) if isinstance(value, list) else (empty if value is None else value) for value in values]
    return tuple(Item(*facts) for facts in zip(items.column("item_id").to_pylist(), *columns.values(), strict=True))


def kinds_of(item: Item) -> tuple[str, ...]:
    """Returns what kinds an item is of: its genres, else its categories, else its creator."""
    return item.genres or item.category or ((item.creator,) if item.creator else ())


def about_users(data: PreparedData) -> list[str | None]:
    """Returns what the dataset says of each user in index order, for example "age 24, gender M, occupation technician"; None: nothing."""
    names = [name for name in ("age", "gender", "occupation") if name in data.users.column_names]
    columns = [data.users.column(name).to_pylist() for name in names]
    rows = zip(*columns, strict=True) if columns else iter([()] * data.n_users)
    return [
        ", ".join(f"{name} {' '.join(str(value).split())[:40]}" for name, value in zip(names, row, strict=True) if value is not None)
        or None
        for row in rows
    ]
