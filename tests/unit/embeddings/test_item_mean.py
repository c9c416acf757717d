import tracemalloc

import numpy as np
import pytest

from llmkt_ray.data.prepared import Rows
from llmkt_ray.embeddings.item_mean import user_means


def test_a_user_is_the_mean_of_the_liked_items_with_a_text():
    user = np.array([0, 0, 0, 1, 1, 3], dtype=np.int32)
    item = np.array([0, 1, 2, 1, 3, 3], dtype=np.int32)
    positive = np.array([True, True, False, False, False, True])
    rows = Rows(user, item, np.ones(6, np.float32), np.full(6, np.nan), positive)
    vectors = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 9.0], [5.0, 5.0]])
    known = np.array([True, True, True, False])
    means, users = user_means(vectors, known, rows, 4)
    assert users.tolist() == [0, 1], "user 2 has no history, user 3 no item with a text"
    np.testing.assert_allclose(means, [[2.0, 0.0], [3.0, 0.0]], err_msg="user 1 likes nothing: all of the history")


def long_histories(n_users: int, n_items: int, n_rows: int) -> Rows:
    rng = np.random.default_rng(0)
    user = np.sort(rng.integers(0, n_users, n_rows)).astype(np.int32)
    item = rng.integers(0, n_items, n_rows).astype(np.int32)
    return Rows(user, item, np.ones(n_rows, np.float32), np.full(n_rows, np.nan), rng.random(n_rows) < 0.5)


@pytest.mark.parametrize("block_rows", [1, 7, 100, 4_000])
def test_blocks_of_users_change_no_float(block_rows):
    rows = long_histories(90, 50, 4_000)
    vectors, known = np.random.default_rng(1).standard_normal((50, 33)), np.arange(50) % 9 > 0
    usable = rows.where(known[rows.item] & rows.positive)  # everybody likes something here
    starts = np.flatnonzero(np.diff(usable.user, prepend=-1))
    at_once = np.add.reduceat(vectors[usable.item], starts, axis=0) / np.diff(starts, append=len(usable))[:, None]
    means, users = user_means(vectors, known, rows, 90, block_rows)
    assert users.tolist() == list(range(90))
    np.testing.assert_array_equal(means, at_once.astype(np.float32))


def test_memory_does_not_grow_with_rows_times_width():
    rows, vectors = long_histories(200, 50, 100_000), np.ones((50, 300))
    tracemalloc.start()
    user_means(vectors, np.ones(50, np.bool_), rows, 200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 * 300 * 8 / 4
