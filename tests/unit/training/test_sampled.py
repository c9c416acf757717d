"""Protocol `paper_2024`: positives among sampled items, on validation by popularity and on test uniformly."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from llmkt_ray.data.prepared import Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.training.metrics import METRICS, parse_metrics
from llmkt_ray.training.sampled import POP20, UNI100, Draw, SampledTask, draw_unused

NAMES = ["NDCG@10", "Recall@10", "Hit@10", "MRR@10", "Precision@5", "MAP@5"]


def scores_of(data, seed=5):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((data.n_users, data.n_items)).astype(np.float32))


def task(data, draw, seed=1):
    return SampledTask(data.test, [data.train_full, data.valid], n_items=data.n_items, metrics=parse_metrics(NAMES), draw=draw, seed=seed)


def test_metrics_are_those_of_a_ranking_of_the_offered_items_alone(data):
    """By brute force: sort each user's offered items, and put the hits into the metric functions."""
    sampled, scores = task(data, Draw(3, "uniform")), scores_of(data)
    ranking = sampled.run(lambda users: scores[users].clone())
    assert ranking.recommended is None
    offered = {}
    for user, item in zip(sampled._users.tolist(), sampled._items.tolist(), strict=True):
        offered.setdefault(user, []).append(item)
    positives = data.test.positives()
    for place, user in enumerate(ranking.users.tolist()):
        liked = set(positives.item[positives.user == user].tolist())
        assert liked <= set(offered[user])
        best = sorted(offered[user], key=lambda item, user=user: -float(scores[user, item]))
        hits = np.array([[item in liked for item in best] + [False] * 10])[:, :10]
        for name in NAMES:
            family, _, k = name.partition("@")
            assert ranking.per_user[name][place] == pytest.approx(METRICS[family](hits, np.array([len(liked)]), int(k))[0])


def test_scoring_the_offered_pairs_alone_gives_the_same(data):
    sampled, scores = task(data, Draw(5, "uniform")), scores_of(data)
    whole = sampled.run(lambda users: scores[users].clone())
    pairs = sampled.run_pairs(lambda users, items: scores[users, items])
    assert whole.means == pairs.means
    for name in NAMES:
        np.testing.assert_array_equal(whole.per_user[name], pairs.per_user[name])


def test_no_item_that_the_user_knows_is_offered_and_each_positive_brings_its_number(data):
    sampled = task(data, Draw(1, "uniform"))
    known = {(u, i) for part in (data.train_full, data.valid) for u, i in zip(part.user.tolist(), part.item.tolist(), strict=True)}
    offered = set(zip(sampled._users.tolist(), sampled._items.tolist(), strict=True))
    assert not offered & known
    positives = data.test.positives()
    counts = np.bincount(positives.user, minlength=data.n_users)
    sizes = np.bincount(sampled._users, minlength=data.n_users)
    assert (sizes <= 2 * counts).all()
    assert sizes.sum() > 1.8 * counts.sum(), "an item that is drawn twice counts once"


def test_items_are_drawn_by_their_popularity_and_uniformly():
    popularity = np.array([1, 2, 0, 4, 8, 1])
    rng = np.random.default_rng(0)
    users, used = np.zeros(8000, np.int64), np.array([5])
    drawn = np.bincount(draw_unused(users, used, 6, popularity, rng), minlength=6)
    assert drawn[2] == 0, "never seen"
    assert drawn[5] == 0, "known to the user"
    expected = np.array([1, 2, 4, 8]) / 15
    assert chisquare(drawn[[0, 1, 3, 4]], expected * 8000).pvalue > 0.001
    uniform = np.bincount(draw_unused(users, used, 6, None, rng), minlength=6)
    assert chisquare(uniform[:5], np.full(5, 1600)).pvalue > 0.001


def test_a_user_who_knows_everything_is_told_of():
    with pytest.raises(TrainingError, match=r"1 users \(the first has index 2\) know all 3 of them"):
        draw_unused(np.array([0, 2]), np.array([6, 7, 8]), 3, None, np.random.default_rng(0))


def test_arms_of_a_seed_meet_the_same_items_selection_pop20_and_result_uni100(run, data, monkeypatch):
    made = []
    original = SampledTask.__init__

    def noted(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append((kwargs["draw"], kwargs["seed"], self._items.tolist()))

    monkeypatch.setattr(SampledTask, "__init__", noted)
    results = [run("BPR", arm, protocol="paper_2024") for arm in ("alpha0", "treated")]
    assert [draw for draw, _, _ in made] == [POP20, UNI100] * 2
    assert made[:2] == made[2:]
    assert all(result.recommended is None for result in results)
    full = run("BPR", "alpha0")
    assert results[0].test["NDCG@10"] > full.test["NDCG@10"], "a sample is easier to beat than the catalogue"
    assert results[0].epochs[0]["loss_model"] == full.epochs[0]["loss_model"], "the protocol changes no training"


def test_test_rows_do_not_enter_the_popularity_of_validation(data):
    """Items that only test has can never be drawn on validation."""
    test_only = np.setdiff1d(data.test.item, np.concatenate([data.train_full.item, data.valid.item]))
    extra = Rows.chained(data.train_full, data.train_full.where(np.array([0])))
    sampled = SampledTask(data.valid, [extra], n_items=data.n_items, metrics=parse_metrics(NAMES), draw=POP20, seed=0)
    valid = set(data.valid.item.tolist())
    assert not (set(sampled._items.tolist()) - valid) & set(test_only.tolist())
