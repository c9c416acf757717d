"""Interactions as integer arrays over sorted tokens, and the filters that decide which of them stay."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmkt_ray.study import FilterRule, PositiveRule


@dataclass(frozen=True)
class Encoded:
    """Interactions in the order of their source, ids as indices of sorted tokens.

    Attributes:
        user, item: int32 `(n,)`.
        rating: float32 `(n,)`; None where the source has none.
        timestamp: float64 `(n,)`, seconds since 1970; None where the source has none.
        count: float32 `(n,)`, how often a user took the item; None where the source has none.
        split: object array `(n,)` of the source's own split column; None where it has none.
        user_tokens, item_tokens: sorted unique ids, Arrow string arrays.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray | None
    timestamp: np.ndarray | None
    count: np.ndarray | None
    split: np.ndarray | None
    user_tokens: pa.Array
    item_tokens: pa.Array

    def __len__(self) -> int:
        return len(self.user)

    def positive(self, rule: PositiveRule) -> np.ndarray:
        """Returns bool `(n,)`: which rows are positives; compared in float32, in which ratings are stored."""
        if rule.rating_at_least is None:
            return np.ones(len(self), dtype=bool)
        assert self.rating is not None, "table_problems refuses a rating rule without ratings"
        return np.asarray(self.rating >= np.float32(rule.rating_at_least))

    def pair_keys(self) -> np.ndarray:
        """Returns int64 `(n,)`: one number a pair of user and item."""
        return np.asarray(self.user.astype(np.int64) * len(self.item_tokens) + self.item)


def encode(interactions: pa.Table) -> Encoded:
    """Returns the rows of a checked table of interactions (see `table_problems`) as arrays."""
    user, user_tokens = _codes(interactions.column("user_id"))
    item, item_tokens = _codes(interactions.column("item_id"))
    names = interactions.column_names
    return Encoded(
        user=user,
        item=item,
        rating=interactions.column("rating").to_numpy().astype(np.float32) if "rating" in names else None,
        timestamp=interactions.column("timestamp").to_numpy() if "timestamp" in names else None,
        count=interactions.column("count").to_numpy().astype(np.float32) if "count" in names else None,
        split=interactions.column("split").to_numpy() if "split" in names else None,
        user_tokens=user_tokens,
        item_tokens=item_tokens,
    )


def filtered(rows: Encoded, rule: FilterRule) -> Encoded:
    """Returns the rows that satisfy every filter at once, with the tokens that are left.

    Users with fewer than `user_min` or at least `user_max` interactions and items with fewer than `item_min` go, in rounds, until
    a round removes nothing. Counts are of interactions, positive or not. The result may be empty.
    """
    user, item = rows.user, rows.item
    kept = np.arange(len(rows))
    while len(kept):
        users = np.bincount(user[kept], minlength=len(rows.user_tokens))
        items = np.bincount(item[kept], minlength=len(rows.item_tokens))
        user_ok = (users >= rule.user_min) & (users < rule.user_max if rule.user_max is not None else True)
        stays = user_ok[user[kept]] & (items >= rule.item_min)[item[kept]]
        if stays.all():
            break
        kept = kept[stays]
    if len(kept) == len(rows):
        return rows
    left_users, new_user = np.unique(user[kept], return_inverse=True)
    left_items, new_item = np.unique(item[kept], return_inverse=True)
    return Encoded(
        user=new_user.astype(np.int32),
        item=new_item.astype(np.int32),
        rating=None if rows.rating is None else rows.rating[kept],
        timestamp=None if rows.timestamp is None else rows.timestamp[kept],
        count=None if rows.count is None else rows.count[kept],
        split=None if rows.split is None else rows.split[kept],
        user_tokens=rows.user_tokens.take(pa.array(left_users)),
        item_tokens=rows.item_tokens.take(pa.array(left_items)),
    )


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Returns int32 indices into the sorted unique values, and those values."""
    encoded = pc.dictionary_encode(column).combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string()))
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank[encoded.indices.to_numpy()], encoded.dictionary.take(pa.array(order))
