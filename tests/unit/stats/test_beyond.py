"""Measures beyond accuracy, by hand and against the definition written out."""

from itertools import combinations

import numpy as np
import pytest
from scipy.sparse import csr_array

from llmkt_ray.stats import beyond

POPULARITY = np.asarray([0.5, 0.25, 0.0, 0.125])


def test_novelty_is_in_bits_and_an_unliked_item_counts_as_liked_by_one():
    lists = np.asarray([[0, 1], [2, 3]])
    assert beyond.novelty(lists, POPULARITY, n_users=16).tolist() == [1.5, 3.5]


def test_the_mean_of_the_lift_is_the_relative_difference_of_two_means():
    lists, liked = np.asarray([[0, 1], [0, 0]]), np.asarray([0.25, np.nan])
    lift = beyond.popularity_lift(lists, POPULARITY, liked)
    assert lift.mean() == pytest.approx((0.375 + 0.5) / 2 / 0.25 - 1)
    assert beyond.popularity_lift(np.asarray([[1, 1]]), POPULARITY, liked[:1]).mean() == 0


def test_diversity_is_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    kinds = rng.random((30, 7)) < 0.3
    kinds[4] = False
    lists = np.stack([rng.permutation(30)[:6] for _ in range(20)] + [np.asarray([4, 4, 4, 4, 4, 1])])
    found = beyond.diversity(lists, csr_array(kinds.astype(float)))
    for row, value in zip(lists, found, strict=True):
        known = [kinds[i].astype(float) for i in row if kinds[i].any()]
        pairs = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(known, 2)]
        assert value == pytest.approx(np.mean(pairs), abs=1e-5) if pairs else np.isnan(value)
    same = beyond.diversity(np.asarray([[0, 1, 2]]), csr_array(np.ones((3, 2))))
    assert same[0] == pytest.approx(0, abs=1e-6)


def test_diversity_of_a_catalogue_with_as_many_creators_as_items():
    n = 100_000
    kinds = csr_array((np.ones(n), np.arange(n), np.arange(n + 1)), shape=(n, n))
    assert beyond.diversity(np.arange(50).reshape(5, 10), kinds).tolist() == [1.0] * 5


def test_the_tail_is_all_but_the_most_popular_fifth():
    popularity = np.asarray([0.1, 0.9, 0.2, 0.8, 0.3, 0.3, 0.3, 0.0, 0.0, 0.0])
    assert np.flatnonzero(~beyond.tail_of(popularity)).tolist() == [1, 3]


def test_tail_recall_looks_at_tail_positives_alone():
    tail = np.asarray([False, True, True, True])
    users, lists = np.asarray([2, 5, 6]), np.asarray([[0, 1], [2, 3], [1, 0]])
    test_user, test_item = np.asarray([2, 2, 2, 5, 5, 6]), np.asarray([0, 1, 3, 1, 2, 0])
    assert beyond.tail_recall(lists, users, test_user, test_item, tail)[:2].tolist() == [0.5, 0.5]
    assert np.isnan(beyond.tail_recall(lists, users, test_user, test_item, tail)[2])  # their only positive is a head item


def test_coverage_is_the_share_of_items_shown_to_anyone():
    assert beyond.covered(np.asarray([[0, 1], [1, 3]]), 5).mean() == pytest.approx(3 / 5)
