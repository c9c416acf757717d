from itertools import chain

import numpy as np
import pytest
import torch

from llmkt_ray.errors import TrainingError
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.models import build_model

from .conftest import HYPERPARAMETERS


def source(data, model, batch_size=64, seed=3, **hyperparameters):
    built = build_model(model, data, hyperparameters=HYPERPARAMETERS.get(model, {}) | hyperparameters, seed=1)
    return BatchSource(built, data.train.positives(), batch_size=batch_size, seed=seed)


def pairs(users, items):
    return sorted(zip(users.tolist(), items.tolist(), strict=True))


def train_pairs(data):
    positives = data.train.positives()
    return pairs(positives.user + 1, positives.item + 1)


def test_pairwise_epoch_holds_every_positive_once_with_a_true_negative(data):
    batches = list(source(data, "BPR").epoch(1))
    users, items = (torch.cat([b.interaction[field] for b in batches]) for field in ("user_id", "item_id"))
    negatives = torch.cat([b.interaction["neg_item_id"] for b in batches])
    assert pairs(users, items) == train_pairs(data)
    assert not set(pairs(users, negatives)) & set(train_pairs(data))
    assert int(negatives.min()) >= 1
    assert int(negatives.max()) <= data.n_items


def test_several_negatives_are_laid_out_as_recbole_does(data):
    batch = next(source(data, "SimpleX", batch_size=30).epoch(1))
    users, items = batch.interaction["user_id"], batch.interaction["item_id"]
    assert len(users) == 30  # 10 positives, 3 negatives each: RecBole counts repeated rows
    for field in (users, items):
        assert torch.equal(field[:10], field[10:20])
        assert torch.equal(field[:10], field[20:])
    assert torch.equal(batch.users, users)


def test_pointwise_labels_positives_first(data):
    batches = list(source(data, "NeuMF", batch_size=64).epoch(1))
    first = batches[0].interaction
    assert first["label"].tolist() == [1.0] * 32 + [0.0] * 32
    assert torch.equal(first["user_id"][:32], first["user_id"][32:])
    positives = [
        pairs(b.interaction["user_id"][b.interaction["label"] == 1], b.interaction["item_id"][b.interaction["label"] == 1]) for b in batches
    ]
    negatives = [
        pairs(b.interaction["user_id"][b.interaction["label"] == 0], b.interaction["item_id"][b.interaction["label"] == 0]) for b in batches
    ]
    assert sorted(chain(*positives)) == train_pairs(data)
    assert not set(chain(*negatives)) & set(train_pairs(data))


def test_user_rows_hold_each_user_once(data):
    batches = list(source(data, "MultiVAE", batch_size=16).epoch(1))
    users = torch.cat([b.users for b in batches])
    assert sorted(users.tolist()) == (np.unique(data.train.positives().user) + 1).tolist()
    assert max(len(b.users) for b in batches) == 16


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "SimpleX", "MultiVAE"])
def test_row_counts_are_what_an_epoch_holds(data, model):
    made = source(data, model)
    users = torch.cat([b.users for b in made.epoch(1)]).numpy() - 1
    np.testing.assert_array_equal(made.row_counts(), np.bincount(users, minlength=data.n_users))


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "MultiVAE"])
def test_an_epoch_is_a_function_of_seed_and_epoch_alone(data, model):
    made = source(data, model)
    list(made.epoch(1))
    second = [b.interaction for b in made.epoch(2)]
    torch.rand(3)
    np.random.default_rng().random()
    fresh = [b.interaction for b in source(data, model).epoch(2)]
    for one, other in zip(second, fresh, strict=True):
        for field in one.columns:
            assert torch.equal(one[field], other[field])
    other_seed = [b.interaction for b in source(data, model, seed=4).epoch(2)]
    assert any(not torch.equal(one["user_id"], other["user_id"]) for one, other in zip(second, other_seed, strict=True))


def test_chunks_of_negatives_do_not_lose_rows(data, monkeypatch):
    monkeypatch.setattr("llmkt_ray.training.batches._ROWS_AT_ONCE", 100)
    batches = list(source(data, "BPR", batch_size=24).epoch(1))
    users, items = (torch.cat([b.interaction[field] for b in batches]) for field in ("user_id", "item_id"))
    assert pairs(users, items) == train_pairs(data)


def test_no_positive_row_is_an_error(data):
    built = build_model("BPR", data, hyperparameters={}, seed=1)
    with pytest.raises(TrainingError, match="no positive rows"):
        BatchSource(built, data.train.where(~data.train.positive).positives(), batch_size=8, seed=0)
