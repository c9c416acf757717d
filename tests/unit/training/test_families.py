"""Context-aware and sequential models through the same trial, and the labelled protocol."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from llmkt_ray.data.prepared import Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.features import feature_fields
from llmkt_ray.training.bridge.models import build_model
from llmkt_ray.training.bridge.registry import MODELS
from llmkt_ray.training.bridge.sequences import SequenceTable
from llmkt_ray.training.labelled import LabelledTask
from llmkt_ray.training.layers import probe_layers, resolve_layers
from llmkt_ray.training.metrics import parse_metrics
from llmkt_ray.training.spec import TrialArtifacts
from llmkt_ray.training.trial import run_trial
from llmkt_ray.transfer.taps import candidates

from .conftest import make_data, make_spec, make_targets, same, twins

LABELLED = {"protocol": "labelled", "metrics": ("AUC", "LogLoss", "GAUC"), "select_on": "AUC"}
CONTEXT = sorted(name for name, entry in MODELS.items() if entry.family == "context")
SEQUENTIAL = sorted(name for name, entry in MODELS.items() if entry.family == "sequential")


def small(model):
    """Hyper-parameters with which a model trains in a second."""
    short = {"MAX_ITEM_LIST_LENGTH": 8} if model in SEQUENTIAL else {}
    return short | {"DSSM": {"mlp_hidden_size": [32]}, "NextItNet": {"block_num": 1}, "S3Rec": {"pretrain_epochs": 1}}.get(model, {})


@pytest.fixture(scope="module")
def featured():
    """The synthetic split with a gender, a nearly unique zip code, and items with a year and genres."""
    data = make_data()
    genres = [[["Drama"], ["Comedy", "War"], []][i % 3] for i in range(data.n_items)]
    users = {"user_id": data.user_tokens.tolist(), "gender": ["F" if i % 2 else "M" for i in range(data.n_users)]}
    users["zip_code"] = [str(i) for i in range(data.n_users)]
    items = {"item_id": data.item_tokens.tolist(), "title": [f"t{i % 5}" for i in range(data.n_items)], "genres": genres}
    items["year"] = [None if i == 4 else str(1990 + i % 7) for i in range(data.n_items)]
    return replace(data, users=pa.table(users), items=pa.table(items))


@pytest.fixture(scope="module")
def ordered(featured):
    """The same users and items, split in time: train, then validation, then test."""
    parts = {}
    for place, name in enumerate(("train", "valid", "test")):
        rows = getattr(featured, name)
        parts[name] = Rows(rows.user, rows.item, rows.rating, rows.timestamp + 1e6 * place, rows.positive)
    return replace(featured, train_full=parts["train"], notes={"split": {"kind": "time"}}, **parts)


def test_features_are_tokens_sequences_or_left_out(featured):
    users, items = feature_fields(featured.users, "user_id"), feature_fields(featured.items, "item_id")
    assert [field.name for field in users] == ["gender"]  # zip codes name users apart
    assert [(field.name, field.is_sequence) for field in items] == [("genres", True), ("year", False)]
    genres, year = items
    assert genres.tokens.tolist() == ["[PAD]", "Comedy", "Drama", "War"]
    assert genres.values[[0, 1, 2, 3]].tolist() == [[0, 0], [2, 0], [1, 3], [0, 0]]
    assert year.values[5].item() == 0  # item 4 has no year
    assert year.tokens[year.values[1].item()] == "1990"


def test_features_follow_their_users_and_items(featured):
    model = build_model("DeepFM", featured, hyperparameters={}, seed=0)
    for batch in BatchSource(model, featured.train.positives(), batch_size=64, seed=0).epoch(1):
        gender = model.dataset.field2id_token["gender"][batch.interaction["gender"].numpy()]
        assert gender.tolist() == ["F" if (u - 1) % 2 else "M" for u in batch.users.tolist()]
        years = model.dataset.field2id_token["year"][batch.interaction["year"].numpy()]
        assert years.tolist() == ["[PAD]" if i == 5 else str(1990 + (i - 1) % 7) for i in batch.interaction["item_id"].tolist()]


@pytest.mark.parametrize("model", CONTEXT)
def test_every_context_model_trains_under_both_protocols(featured, model):
    ranked = run_trial(make_spec(featured, model, epochs=2), TrialArtifacts(featured))
    assert 0 < ranked.test["NDCG@10"] < 1
    labelled = run_trial(make_spec(featured, model, epochs=2, **LABELLED), TrialArtifacts(featured))
    assert 0 < labelled.test["AUC"] < 1
    assert labelled.recommended is None


def test_labelled_training_uses_every_row_and_learns(featured):
    result = run_trial(make_spec(featured, "DeepFM", epochs=15, **LABELLED), TrialArtifacts(featured))
    assert result.facts["n_train_rows"] == len(featured.train)
    assert result.facts["negatives_per_row"] == 0
    assert result.epochs[-1]["loss_model"] < 0.9 * result.epochs[0]["loss_model"]
    lowest = run_trial(make_spec(featured, "DeepFM", epochs=15, **LABELLED | {"select_on": "LogLoss"}), TrialArtifacts(featured))
    losses = {row["epoch"]: row["valid_LogLoss"] for row in lowest.epochs if row["epoch"] > 7}
    assert lowest.best_epoch == min(losses, key=lambda epoch: losses[epoch])


def test_label_metrics_equal_scikit_learn(featured):
    rng = np.random.default_rng(0)
    scores = np.round(rng.random(len(featured.test)), 2)  # with ties
    table = dict(zip(zip(featured.test.user.tolist(), featured.test.item.tolist(), strict=True), scores, strict=True))
    task = LabelledTask(featured.test, metrics=parse_metrics(LABELLED["metrics"]))
    got = task.run(lambda users, items: torch.tensor([table[pair] for pair in zip(users.tolist(), items.tolist(), strict=True)]))
    labels = featured.test.positive
    assert got.means["AUC"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert got.means["LogLoss"] == pytest.approx(log_loss(labels, np.clip(scores, 1e-15, 1 - 1e-15)), abs=1e-6)
    users = featured.test.user
    both = [u for u in np.unique(users) if 0 < labels[users == u].sum() < (users == u).sum()]
    own = [roc_auc_score(labels[users == u], scores[users == u]) for u in both]
    assert got.means["GAUC"] == pytest.approx(np.average(own, weights=[labels[users == u].sum() for u in both]), abs=1e-9)


def test_protocols_and_metrics_must_agree(featured):
    with pytest.raises(TrainingError, match="does not measure AUC"):
        run_trial(make_spec(featured, "DeepFM", metrics=("AUC",), select_on="AUC"), TrialArtifacts(featured))
    with pytest.raises(TrainingError, match="learns from pairwise"):
        run_trial(make_spec(featured, "BPR", **LABELLED), TrialArtifacts(featured))
    liked = replace(featured, valid=featured.valid.positives())
    with pytest.raises(TrainingError, match="positive and negative rows"):
        run_trial(make_spec(featured, "DeepFM", **LABELLED), TrialArtifacts(liked))


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_sequences_are_what_the_user_liked_before(ordered, loss_type):
    model = build_model("SASRec", ordered, hyperparameters={"loss_type": loss_type, "MAX_ITEM_LIST_LENGTH": 5}, seed=0)
    positives = ordered.train.positives()
    history = {
        u: positives.item[positives.user == u][np.argsort(positives.timestamp[positives.user == u])] + 1 for u in range(ordered.n_users)
    }
    count = 0
    for batch in BatchSource(model, positives, batch_size=50, seed=0).epoch(1):
        got = batch.interaction
        for user, sequence, length, target in zip(
            batch.users.tolist(), got["item_id_list"].tolist(), got["item_length"].tolist(), got["item_id"].tolist(), strict=True
        ):
            place = history[user - 1].tolist().index(target)
            before = history[user - 1][max(0, place - 5) : place].tolist()
            assert (sequence[:length], sequence[length:]) == (before, [0] * (5 - length))
            count += 1
        if loss_type == "BPR":  # as in RecBole, what a user took before may be a negative of what came next
            assert bool((got["neg_item_id"] != got["item_id"]).all())
            assert int(got["neg_item_id"].min()) >= 1
            assert int(got["neg_item_id"].max()) <= ordered.n_items
    assert count == sum(max(0, len(items) - 1) for items in history.values())


def test_test_sequences_end_with_validation(ordered):
    table = SequenceTable.of([ordered.train, ordered.valid], 50)
    valid = ordered.valid.positives()
    user = int(valid.user[0])
    sequence, length = table.whole(np.asarray([user]))
    items = valid.item[valid.user == user] + 1
    assert sequence[0, : int(length[0])].tolist()[-len(items) :] == items.tolist()
    nobody, one = SequenceTable.of([ordered.train.where(ordered.train.user > 3)], 50).whole(np.asarray([0]))
    assert (int(nobody.sum()), one.tolist()) == (0, [1])


@pytest.mark.parametrize("model", SEQUENTIAL)
def test_every_sequential_model_trains_and_repeats(ordered, model):
    one, two = (run_trial(make_spec(ordered, model, epochs=2, hyperparameters=small(model)), TrialArtifacts(ordered)) for _ in range(2))
    same(one, two)
    assert one.test["NDCG@10"] > 0


@pytest.mark.parametrize("model", [*CONTEXT, *SEQUENTIAL])
def test_every_context_and_sequential_model_learns_from_profiles_and_its_arms_are_twins(featured, ordered, model, run_steps):
    """But for the models without a layer of the user's own."""
    split, hyperparameters = (ordered if model in SEQUENTIAL else featured), small(model)
    taps = candidates(probe_layers(model, split, hyperparameters))
    assert (not taps) == (model == "LR")
    if taps:
        tap = resolve_layers("auto", taps, model)[0]
        transfer = {"alpha": 0.5, "layer": tap.name, "targets_key": "targets", "balance": "initial", "projection": "student"}
        plain, treated = (
            run_trial(make_spec(split, model, "alpha0", epochs=2, hyperparameters=hyperparameters).model_copy(update=changes), artifacts)
            for changes, artifacts in (
                ({}, TrialArtifacts(split)),
                ({"arm": "treated", **transfer}, TrialArtifacts(split, make_targets(split, 5))),
            )
        )
        assert treated.facts["transfer_steps"] == treated.facts["batches_per_epoch"] > 0
        assert np.isfinite(treated.epochs[0]["loss_transfer"])
        assert treated.epochs[1]["loss_model"] != plain.epochs[1]["loss_model"]
        twins(*run_steps)


def test_a_pairwise_sequential_model_without_a_loss_setting_gets_its_negatives(ordered):
    model = build_model("TransRec", ordered, hyperparameters=small("TransRec"), seed=0)
    for batch in BatchSource(model, ordered.train.positives(), batch_size=50, seed=0).epoch(1):
        assert bool((batch.interaction["neg_item_id"] != batch.interaction["item_id"]).all())


def test_masked_histories_do_not_hide_whose_a_position_is(ordered):
    """BERT4Rec masks items at random: with one generator for a batch, a longer history of one user would move the masks of the others."""
    taps = {tap.name: tap for tap in probe_layers("BERT4Rec", ordered, small("BERT4Rec"))}
    assert taps["output_ln"].alignment == taps["trm_encoder.layer.1"].alignment == "sequence"


def test_a_random_split_is_refused_for_sequences(ordered, featured):
    with pytest.raises(TrainingError, match="leave_one_out or time"):
        run_trial(make_spec(ordered, "SASRec"), TrialArtifacts(replace(ordered, notes={"split": {"kind": "random"}})))
    blind = replace(ordered.train, timestamp=np.full(len(ordered.train), np.nan))
    with pytest.raises(TrainingError, match="need timestamps"):
        run_trial(make_spec(ordered, "SASRec"), TrialArtifacts(replace(ordered, train=blind)))
