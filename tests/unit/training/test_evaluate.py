import numpy as np
import pytest
import torch

from llmkt_ray.errors import TrainingError
from llmkt_ray.training import evaluate
from llmkt_ray.training.evaluate import RankingTask
from llmkt_ray.training.metrics import parse_metrics

METRICS = parse_metrics(["NDCG@10", "Recall@10"])


@pytest.fixture
def scores(data):
    return torch.from_numpy(np.random.default_rng(5).standard_normal((data.n_users, data.n_items)).astype(np.float32))


def test_nothing_masked_is_recommended_and_low_rated_train_items_are_masked_too(data, scores):
    ranking = RankingTask(data.test, [data.train_full, data.valid], n_items=data.n_items, metrics=METRICS).run(lambda users: scores[users])
    low = data.train_full.where(~data.train_full.positive)
    assert len(low)
    seen = {(u, i) for part in (data.train_full, data.valid) for u, i in zip(part.user.tolist(), part.item.tolist(), strict=True)}
    offered = {(u, i) for u, row in zip(ranking.users.tolist(), ranking.recommended.tolist(), strict=True) for i in row}
    assert not seen & offered


def test_users_are_those_with_a_positive_in_the_part(data, scores):
    ranking = RankingTask(data.test, [data.train_full, data.valid], n_items=data.n_items, metrics=METRICS).run(lambda users: scores[users])
    np.testing.assert_array_equal(ranking.users, np.unique(data.test.positives().user))
    assert 7 not in ranking.users


def test_block_size_does_not_change_anything(data, scores, monkeypatch):
    whole = RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=METRICS).run(lambda users: scores[users])
    monkeypatch.setattr(evaluate, "_SCORES_AT_ONCE", data.n_items * 7)
    asked = []
    task = RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=METRICS)
    blocks = task.run(lambda users: asked.append(len(users)) or scores[users])
    assert max(asked) == 7
    np.testing.assert_array_equal(whole.recommended, blocks.recommended)
    assert whole.means == blocks.means


def test_fewer_items_than_k(data, scores):
    deep = parse_metrics(["Recall@500"])
    ranking = RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=deep).run(lambda users: scores[users])
    assert ranking.means["Recall@500"] == 1.0


def test_nan_scores_are_an_error(data, scores):
    scores[3, 4] = float("nan")
    with pytest.raises(TrainingError, match="NaN"):
        RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=METRICS).run(lambda users: scores[users])


def test_a_part_without_positives_is_refused(data):
    empty = data.test.where(np.zeros(len(data.test), dtype=bool))
    with pytest.raises(TrainingError, match="no positive rows"):
        RankingTask(empty, [data.train_full], n_items=data.n_items, metrics=METRICS)
