"""Our metrics against RecBole's own evaluator on the same scores, and what a wrong name says."""

import numpy as np
import pytest
import torch

from llmkt_ray.errors import TrainingError
from llmkt_ray.training.bridge import shims
from llmkt_ray.training.evaluate import RankingTask
from llmkt_ray.training.metrics import METRICS, metric_problem, parse_metrics

shims.install()

from recbole.evaluator.metrics import MAP, MRR, NDCG, Hit, Precision, Recall  # noqa: E402

RECBOLE = {"NDCG": NDCG, "Recall": Recall, "Hit": Hit, "MRR": MRR, "Precision": Precision, "MAP": MAP}


class Collected(dict):
    """What RecBole's collector hands to its metrics."""


def recbole_value(family, scores, held_out, masked, ks):
    """Runs RecBole's metric class on the scores, with its own mask (-inf), top-k and rounding (12 places)."""
    scores = scores.copy()
    scores[masked.user, masked.item] = -np.inf
    positives = held_out.positives()
    users = np.unique(positives.user)
    top = torch.topk(torch.from_numpy(scores[users]), max(ks)).indices.numpy()
    liked = np.zeros(scores.shape, dtype=bool)
    liked[positives.user, positives.item] = True
    rec_topk = np.concatenate([np.take_along_axis(liked[users], top, axis=1), liked[users].sum(axis=1, keepdims=True)], axis=1)
    metric = RECBOLE[family]({"topk": list(ks), "metric_decimal_place": 12})
    return metric.calculate_metric(Collected({"rec.topk": torch.from_numpy(rec_topk.astype(np.int64))}))


@pytest.mark.parametrize("family", sorted(METRICS))
def test_equal_to_recbole_on_the_same_scores(data, family):
    scores = np.random.default_rng(3).standard_normal((data.n_users, data.n_items)).astype(np.float32)
    ks = (1, 5, 10, 20)
    task = RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=parse_metrics(f"{family}@{k}" for k in ks))
    ours = task.run(lambda users: torch.from_numpy(scores)[users])
    theirs = recbole_value(family, scores, data.valid, data.train_full, ks)
    for k in ks:
        assert ours.means[f"{family}@{k}"] == pytest.approx(theirs[f"{family.lower()}@{k}"], abs=1e-9)
        assert 0 < ours.means[f"{family}@{k}"] <= 1


@pytest.mark.parametrize(
    ("name", "told"),
    [("NDGC@10", "did you mean 'NDCG@10'"), ("NDCG", "needs a depth"), ("NDCG@0", "needs a depth"), ("NDCG@ten", "needs a depth")],
)
def test_a_wrong_name_says_what_is_allowed(name, told):
    assert told in (metric_problem(name) or "")
    with pytest.raises(TrainingError, match=r"depth|mean"):
        parse_metrics([name])
