"""Models whose sampling is their own: RecBole's loader makes their batches, and their rows say so."""

import numpy as np
import pytest
import torch

from llmkt_ray.errors import TrainingError
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.models import build_model

from .conftest import HYPERPARAMETERS

POPULARITY = {"train_neg_sample_args": {"distribution": "popularity", "sample_num": 1}}
DYNAMIC = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "dynamic": True, "candidate_num": 4}}


def source(data, model="BPR", batch_size=64, **hyperparameters):
    built = build_model(model, data, hyperparameters=HYPERPARAMETERS.get(model, {}) | hyperparameters, seed=1)
    return built, BatchSource(built, data.train.positives(), batch_size=batch_size, seed=3)


def draws(batches, epochs):
    """Pairs of user and negative over epochs, as indices of the split."""
    made = [batch.interaction for epoch in range(1, epochs + 1) for batch in batches.epoch(epoch)]
    return tuple(torch.cat([batch[name] for batch in made]).numpy() - 1 for name in ("user_id", "neg_item_id"))


@pytest.mark.parametrize("sampling", [POPULARITY, DYNAMIC], ids=["popularity", "dynamic"])
@pytest.mark.parametrize("model", ["BPR", "NeuMF"])
def test_such_a_model_trains_transfers_and_its_row_says_recbole(run, model, sampling):
    hyperparameters = HYPERPARAMETERS[model] | sampling
    changes = {"hyperparameters": hyperparameters, "epochs": 4, "schedule": ScheduleConfig(switch=0.5)}
    treated, again, twin = (run(model, arm, **changes) for arm in ("treated", "treated", "alpha0"))
    assert treated.facts["path"] == twin.facts["path"] == "recbole"
    assert treated.facts["transfer_steps"] == 2 * treated.facts["batches_per_epoch"]
    assert treated.test == again.test
    losses = [[row["loss_model"] for row in result.epochs] for result in (treated, again, twin)]
    assert losses[0] == losses[1]
    if sampling is POPULARITY:  # what a dynamic sampling draws depends on what was learned
        assert losses[0][0] != losses[2][0]
    assert run(model, "alpha0", epochs=2, hyperparameters=HYPERPARAMETERS[model]).facts["path"] == "lean"


@pytest.mark.parametrize("sampling", [{}, POPULARITY], ids=["uniform", "popularity"])
def test_a_model_that_makes_its_graph_anew_in_train_does_so_once_an_epoch(data, monkeypatch, sampling):
    """SGL; RecBole's trainer calls `train` once an epoch, whoever draws the negatives."""
    built, batches = source(data, "SGL", **sampling)
    made, original = [], type(built.module).graph_construction

    def counted(self):
        made.append(1)
        return original(self)

    monkeypatch.setattr(type(built.module), "graph_construction", counted)
    for epoch in (1, 2):
        built.module.train()
        assert len(list(batches.epoch(epoch))) > 2
    assert len(made) == 2


def test_an_epoch_of_recboles_loader_holds_every_positive_once_and_counts_batches(data):
    _, batches = source(data, **POPULARITY)
    made = list(batches.epoch(2))
    positives = data.train.positives()
    seen = sorted((u, i) for batch in made for u, i in zip(batch.users.tolist(), batch.interaction["item_id"].tolist(), strict=True))
    assert seen == sorted(zip((positives.user + 1).tolist(), (positives.item + 1).tolist(), strict=True))
    assert len(made) == batches.n_batches
    again = list(source(data, **POPULARITY)[1].epoch(2))
    assert all(torch.equal(a.interaction["neg_item_id"], b.interaction["neg_item_id"]) for a, b in zip(made, again, strict=True))


def test_popular_items_are_drawn_more_often_and_no_positive_is(data):
    _, batches = source(data, batch_size=2048, **POPULARITY)
    users, negatives = draws(batches, 30)
    positives = data.train.positives()
    known = set(zip(positives.user.tolist(), positives.item.tolist(), strict=True))
    assert not known & set(zip(users.tolist(), negatives.tolist(), strict=True))
    counts = np.bincount(positives.item, minlength=data.n_items)
    drawn = np.bincount(negatives, minlength=data.n_items)
    assert drawn[counts == 0].sum() == 0
    assert np.corrcoef(counts, drawn)[0, 1] > 0.5
    uniform = np.bincount(draws(source(data, batch_size=2048)[1], 30)[1], minlength=data.n_items)
    assert np.corrcoef(counts, uniform)[0, 1] < 0


def test_dynamic_negatives_are_the_best_scored_of_their_candidates_and_leave_the_mode_alone(data):
    built, batches = source(data, batch_size=2048, **DYNAMIC)
    scores = built.scores(torch.arange(data.n_users)).numpy()
    built.module.train()
    hard = scores[draws(batches, 5)].mean()
    assert built.module.training
    easy = scores[draws(source(data, batch_size=2048)[1], 5)].mean()
    assert hard > easy + scores.std() / 2


def test_a_user_who_likes_all_popular_items_is_refused_and_not_waited_for(data):
    built, _ = source(data, **POPULARITY)
    dataset = built.dataset
    user = dataset.inter_feat["user_id"][0]
    dataset.inter_feat.interaction["item_id"] = torch.where(dataset.inter_feat["user_id"] == user, dataset.inter_feat["item_id"], 1)
    dataset.inter_feat.interaction["item_id"][0] = 1
    with pytest.raises(TrainingError, match="items that can be drawn as train positives"):
        built.loader(64)
