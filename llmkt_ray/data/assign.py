"""Which part each interaction belongs to: four pure rules, and the thinning of train rows.

Every rule draws once a row in the order of sorted (user, item) pairs, so the order of rows in the source cannot matter.
"""

import numpy as np

from llmkt_ray.data.encode import Encoded
from llmkt_ray.study import SplitRule

TRAIN, VALID, TEST = 0, 1, 2
PART_NAMES = ("train", "valid", "test")
"""The values of a given split column, by part."""

MIN_KEPT = 3
"""Train rows that thinning leaves a user at the least."""


def divide(rows: Encoded, rule: SplitRule, positive: np.ndarray, seed: int) -> np.ndarray:
    """Returns int8 `(n,)`: the part of every row, by the rule's kind.

    Args:
        rows: checked rows (see `table_problems`): timestamps or a split column are there where the kind needs them.
        rule: the kind and its ratios.
        positive: bool `(n,)`; only `column` without a validation part looks at it.
        seed: of every random choice.
    """
    draw = _draws(rows, seed)
    if rule.kind == "random":
        return _by_user(rows.user, (draw,), rule.ratios)
    if rule.kind == "column":
        assert rows.split is not None, "table_problems refuses a column split without the column"
        return _by_column(rows, positive, draw)
    assert rows.timestamp is not None, "table_problems refuses splits by time without timestamps"
    if rule.kind == "leave_one_out":
        return _leave_one_out(rows.user, rows.timestamp, draw)
    return _by_user(np.zeros(len(rows), dtype=np.int32), (draw, rows.timestamp), rule.ratios)


def thin(rows: Encoded, train: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns bool `(n,)`: the train rows that models may learn from, a random `share` of each user's.

    A user keeps round(share * n) rows, at least `MIN_KEPT` and at most all n. Smaller shares keep subsets of what larger ones keep.

    Args:
        rows: all rows.
        train: bool `(n,)`, the train rows of the full split.
        share: in (0, 1].
        seed: of the random choice; not a function of the share.
    """
    if share == 1:
        return train.copy()
    where = np.flatnonzero(train)
    rank, size = _rank_within(rows.user[where], (_draws(rows, seed)[where],))
    kept = np.zeros(len(rows), dtype=bool)
    kept[where] = rank < np.maximum(MIN_KEPT, np.floor(share * size + 0.5))
    return kept


def part_sizes(n: np.ndarray, ratios: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many of `n` rows go to validation and to test; the rest, at least one of n >= 1, is train.

    Each gets floor(n * ratio), but test at least 1 of 2 rows or more and validation at least 1 of 3 or more, as far as one row is
    left for train: 1 row is train, 2 rows are train and test, 3 rows one each. RecBole's rule for common ratios.
    """
    valid, test = (np.floor(n * share + 1e-9).astype(np.int64) for share in ratios[1:])  # 10 * 0.7 may come out below 7
    test = np.minimum(np.maximum(test, 1), n - 1)
    return np.minimum(np.maximum(valid, 1), n - 1 - test), test


def _by_user(group: np.ndarray, keys: tuple[np.ndarray, ...], ratios: tuple[float, float, float]) -> np.ndarray:
    """Divides each group by ratios, in the order of `keys` (least significant first): the first rows are train."""
    rank, size = _rank_within(group, keys)
    valid, test = part_sizes(size, ratios)
    return np.where(rank >= size - test, TEST, np.where(rank >= size - test - valid, VALID, TRAIN)).astype(np.int8)


def _leave_one_out(user: np.ndarray, timestamp: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Each user's last row is test and the one before it validation; a single row is train, of two rows none is validation."""
    rank, size = _rank_within(user, (draw, timestamp))
    from_end = size - 1 - rank
    return np.where((from_end == 0) & (size >= 2), TEST, np.where((from_end == 1) & (size >= 3), VALID, TRAIN)).astype(np.int8)


def _by_column(rows: Encoded, positive: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """The given parts; without a validation part, a random half of each user's test rows becomes validation.

    Positives and other rows are halved separately and test gets the odd one, so a user with one positive gives it to test.
    """
    parts = np.select([rows.split == "valid", rows.split == "test"], [VALID, TEST], TRAIN).astype(np.int8)
    if (parts == VALID).any():
        return parts
    where = np.flatnonzero(parts == TEST)
    rank, size = _rank_within(rows.user[where].astype(np.int64) * 2 + positive[where], (draw[where],))
    parts[where[rank < size // 2]] = VALID
    return parts


def _draws(rows: Encoded, seed: int) -> np.ndarray:
    """Returns float64 `(n,)` in [0, 1): one draw a row, dealt out in the order of sorted (user, item) pairs."""
    draw = np.empty(len(rows))
    draw[np.argsort(rows.pair_keys(), kind="stable")] = np.random.default_rng(seed).random(len(rows))
    return draw


def _rank_within(group: np.ndarray, keys: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns int64 `(n,)` twice: each row's rank in its group by `keys` (least significant first), and its group's size."""
    order = np.lexsort((*keys, group))
    _, starts, sizes = np.unique(group[order], return_index=True, return_counts=True)
    rank, size = np.empty(len(group), dtype=np.int64), np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(starts, sizes)
    size[order] = np.repeat(sizes, sizes)
    return rank, size
