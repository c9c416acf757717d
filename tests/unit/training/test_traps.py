"""Traps of the published code that concern how a trial is evaluated and compared (METHOD.md, section 2)."""

import math

import numpy as np
import pytest
import torch

from llmkt_ray.data.prepared import Rows
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.training.evaluate import RankingTask
from llmkt_ray.training.metrics import parse_metrics

from .conftest import make_spec

ARMS = ("baseline", "alpha0", "treated", "shuffled")


def held_out(n_users):
    """One positive for each user: item 0."""
    users = np.arange(n_users, dtype=np.int32)
    return Rows(users, np.zeros(n_users, np.int32), np.full(n_users, 5, np.float32), np.arange(n_users) + 0.0, np.ones(n_users, bool))


def test_trap_15_metrics_rank_the_whole_catalogue_and_not_a_sample_of_it():
    """Item 0 stands at rank 41 of 1,000: against 100 uniform negatives it is among the first 10 of nearly every user, in truth of none."""
    n_users, n_items = 200, 1000
    scores = torch.linspace(1, 0, n_items).roll(1).expand(n_users, n_items).clone()
    scores[:, 0] = (scores[:, 40] + scores[:, 41]) / 2
    metrics = parse_metrics(["Hit@10", "Hit@40", "Hit@41", "MRR@100"])
    empty = held_out(n_users).where(np.zeros(n_users, dtype=bool))
    ranking = RankingTask(held_out(n_users), [empty], n_items=n_items, metrics=metrics).run(lambda users: scores[users].clone())
    assert (ranking.means["Hit@10"], ranking.means["Hit@40"], ranking.means["Hit@41"]) == (0.0, 0.0, 1.0)
    assert ranking.means["MRR@100"] == pytest.approx(1 / 41)
    rng = np.random.default_rng(0)
    sampled = [(scores[0, rng.choice(np.arange(1, n_items), 100, replace=False)] > scores[0, 0]).sum() < 10 for _ in range(n_users)]
    assert np.mean(sampled) > 0.9


def test_trap_16_arms_have_equal_epochs_steps_evaluations_and_choices(run):
    """The published arms differ in epochs, restarts and selection metric: one that may choose among more epochs wins by that alone."""
    results = {arm: run("BPR", arm, epochs=6, evaluate_every=2, schedule=ScheduleConfig(switch=0.5)) for arm in ARMS}
    evaluated = {arm: [row["epoch"] for row in r.epochs if not math.isnan(row["valid_NDCG@10"])] for arm, r in results.items()}
    assert set(map(tuple, evaluated.values())) == {(2, 3, 4, 6)}
    assert {r.facts["batches_per_epoch"] * len(r.epochs) for r in results.values()} == {results["baseline"].facts["batches_per_epoch"] * 6}
    for result in results.values():
        offered = {row["epoch"]: row["valid_NDCG@10"] for row in result.epochs if row["epoch"] in (4, 6)}
        assert result.best_epoch in offered
        assert result.valid["NDCG@10"] == max(offered.values())


def test_trap_16_seeds_are_repeated_and_shared_by_the_arms(data, run):
    seeds = {(arm, index): make_spec(data, "BPR", arm, seed_index=index).seed for arm in ARMS for index in range(3)}
    assert len(set(seeds.values())) == 3
    assert all(seeds[arm, index] == seeds["baseline", index] for arm in ARMS for index in range(3))
    losses = {index: run("BPR", "baseline", seed_index=index).epochs[0]["loss_model"] for index in range(3)}
    assert len(set(losses.values())) == 3
    assert run("BPR", "alpha0", seed_index=1).epochs[0]["loss_model"] == losses[1]
