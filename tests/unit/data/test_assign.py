"""The four split rules and thinning, on any data: every row in exactly one part, the right one, whatever the order of rows."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkt_ray.data.assign import MIN_KEPT, TEST, TRAIN, VALID, divide, part_sizes, thin
from llmkt_ray.data.encode import Encoded, encode, filtered
from llmkt_ray.study import FilterRule, PositiveRule, SplitRule

KINDS = ("random", "leave_one_out", "time", "column")


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Interactions without repeated pairs, in any order, with times that tie and a split column."""
    pairs = draw(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), min_size=1, max_size=60, unique=True))
    n = len(pairs)
    return pa.table(
        {
            "user_id": [f"u{u}" for u, _ in pairs],
            "item_id": [f"i{i}" for _, i in pairs],
            "rating": draw(hnp.arrays(np.float64, n, elements=st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0]))),
            "timestamp": draw(hnp.arrays(np.float64, n, elements=st.integers(0, 5).map(float))),
            "split": draw(st.lists(st.sampled_from(["train", "test"]), min_size=n, max_size=n)),
        }
    )


def named(rows: Encoded, parts: np.ndarray) -> dict[tuple[str, str], int]:
    users, items = rows.user_tokens.to_pylist(), rows.item_tokens.to_pylist()
    return {(users[u], items[i]): int(part) for u, i, part in zip(rows.user, rows.item, parts, strict=True)}


@given(table=tables(), kind=st.sampled_from(KINDS), seed=st.integers(0, 99), data=st.data())
def test_a_split_does_not_depend_on_the_order_of_rows(table: pa.Table, kind: str, seed: int, data: st.DataObject) -> None:
    shuffled = table.take(pa.array(data.draw(st.permutations(range(len(table))))))
    outcomes = []
    for version in (table, shuffled):
        rows = encode(version)
        positive = rows.positive(PositiveRule(rating_at_least=4))
        outcomes.append(named(rows, divide(rows, SplitRule(kind=kind), positive, seed)))
    assert outcomes[0] == outcomes[1]


@given(table=tables(), kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_every_row_is_in_one_part_and_sizes_are_right(table: pa.Table, kind: str, seed: int) -> None:
    rows = encode(table)
    parts = divide(rows, SplitRule(kind=kind), rows.positive(PositiveRule()), seed)
    assert parts.shape == (len(table),)
    assert set(parts.tolist()) <= {TRAIN, VALID, TEST}
    for user in range(len(rows.user_tokens)):
        mine = parts[rows.user == user]
        if kind == "random":
            valid, test = part_sizes(np.array([len(mine)]), (0.7, 0.1, 0.2))
            assert ((mine == VALID).sum(), (mine == TEST).sum()) == (valid[0], test[0])
        if kind == "leave_one_out":
            assert ((mine == VALID).sum(), (mine == TEST).sum()) == (int(len(mine) >= 3), int(len(mine) >= 2))
    if kind == "time":
        valid, test = part_sizes(np.array([len(rows)]), (0.7, 0.1, 0.2))
        assert ((parts == VALID).sum(), (parts == TEST).sum()) == (valid[0], test[0])


@given(table=tables(), seed=st.integers(0, 99))
def test_later_parts_are_later_in_time(table: pa.Table, seed: int) -> None:
    rows = encode(table)
    assert rows.timestamp is not None
    parts = divide(rows, SplitRule(kind="time"), rows.positive(PositiveRule()), seed)
    for part in (VALID, TEST):
        if (parts == part).any():
            assert rows.timestamp[parts < part].max(initial=-1) <= rows.timestamp[parts == part].min()
    last = divide(rows, SplitRule(kind="leave_one_out"), rows.positive(PositiveRule()), seed)
    for user in range(len(rows.user_tokens)):
        mine = rows.user == user
        times = rows.timestamp[mine][np.argsort(last[mine], kind="stable")]
        held_out = times[len(times) - (last[mine] != TRAIN).sum() :]
        assert times[: len(times) - len(held_out)].max(initial=-1) <= held_out.min(initial=99)
        assert (np.diff(held_out) >= 0).all()


@given(table=tables(), seed=st.integers(0, 99))
def test_a_column_without_validation_gives_it_half_of_each_users_test_positives(table: pa.Table, seed: int) -> None:
    rows = encode(table)
    positive = rows.positive(PositiveRule(rating_at_least=4))
    parts = divide(rows, SplitRule(kind="column"), positive, seed)
    assert rows.split is not None
    assert np.array_equal(parts == TRAIN, rows.split == "train")
    for user in range(len(rows.user_tokens)):
        for good in (True, False):
            mine = parts[(rows.user == user) & (rows.split == "test") & (positive == good)]
            assert (mine == VALID).sum() == len(mine) // 2
            assert (mine == TEST).sum() == len(mine) - len(mine) // 2


def test_a_given_validation_part_is_left_as_it_is() -> None:
    parts = ["train", "valid", "test", "test", "test"]
    rows = encode(pa.table({"user_id": ["a"] * 5, "item_id": list("vwxyz"), "split": parts}))
    assert divide(rows, SplitRule(kind="column"), np.ones(5, bool), 0).tolist() == [TRAIN, VALID, TEST, TEST, TEST]


@pytest.mark.parametrize(
    ("n", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (10, (7, 1, 2)), (100, (70, 10, 20))]
)
def test_small_users_keep_a_train_row_then_get_test_then_validation(n: int, expected: tuple[int, int, int]) -> None:
    valid, test = part_sizes(np.array([n]), (0.7, 0.1, 0.2))
    assert (n - valid[0] - test[0], valid[0], test[0]) == expected


@given(n=st.integers(1, 500), cut=st.tuples(st.floats(0.01, 0.98), st.floats(0.01, 0.99)))
def test_train_never_goes_empty(n: int, cut: tuple[float, float]) -> None:
    low, high = sorted(cut)
    valid, test = part_sizes(np.array([n]), (low, high - low, 1 - high))
    assert n - valid[0] - test[0] >= 1
    assert valid[0] >= 0
    assert test[0] >= (n >= 2)


def test_another_seed_gives_another_random_split_of_the_same_sizes() -> None:
    rows = encode(pa.table({"user_id": ["a"] * 50, "item_id": [f"i{k}" for k in range(50)]}))
    one, same, other = (divide(rows, SplitRule(), np.ones(50, bool), seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.array_equal(np.bincount(one), np.bincount(other))


@given(table=tables(), seed=st.integers(0, 99), shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_thinning_keeps_a_share_of_each_users_train_rows_and_nests(table: pa.Table, seed: int, shares: tuple[float, float]) -> None:
    rows = encode(table)
    train = divide(rows, SplitRule(), rows.positive(PositiveRule()), seed) == TRAIN
    small, large = (thin(rows, train, share, seed) for share in sorted(shares))
    assert not (small & ~large).any()
    assert not (large & ~train).any()
    for user in range(len(rows.user_tokens)):
        n = int(train[rows.user == user].sum())
        assert small[rows.user == user].sum() == min(n, max(MIN_KEPT, int(np.floor(min(shares) * n + 0.5))))


@given(table=tables(), user_min=st.integers(1, 6), width=st.none() | st.integers(1, 8), item_min=st.integers(1, 5))
@settings(max_examples=200)
def test_filters_hold_together_and_take_no_row_without_need(table: pa.Table, user_min: int, width: int | None, item_min: int) -> None:
    rule = FilterRule(user_min=user_min, user_max=None if width is None else user_min + width, item_min=item_min)
    before = encode(table)
    rows = filtered(before, rule)
    expected = {(u, i) for u, i in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True)}
    while True:  # the same rule by hand, on sets
        users = {u: sum(v == u for v, _ in expected) for u, _ in expected}
        items = {i: sum(j == i for _, j in expected) for _, i in expected}
        stays = {(u, i) for u, i in expected if user_min <= users[u] < (rule.user_max or 10**9) and items[i] >= item_min}
        if stays == expected:
            break
        expected = stays
    assert set(named(rows, np.zeros(len(rows)))) == expected
    assert len(rows) == len(expected)
    assert rows.user_tokens.to_pylist() == sorted({u for u, _ in expected})
    assert rows.item_tokens.to_pylist() == sorted({i for _, i in expected})


def test_positives_are_compared_as_ratings_are_stored() -> None:
    rows = encode(pa.table({"user_id": ["a", "b"], "item_id": ["x", "x"], "rating": [3.3, 3.2]}))
    assert rows.positive(PositiveRule(rating_at_least=3.3)).tolist() == [True, False]
    assert rows.positive(PositiveRule()).tolist() == [True, True]
