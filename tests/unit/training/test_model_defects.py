"""Models that RecBole gets wrong, trains in its own way, or keeps state in: each does what its name says, in every arm."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
import recbole.trainer
import torch

from benchmarks.transfer.model_table import FAMILIES, class_names
from llmkt_ray.errors import LayerError, StudyError, TrainingError
from llmkt_ray.seeds import derive_seed
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.sweep.check import check_study
from llmkt_ray.sweep.run import store_of
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge import shims
from llmkt_ray.training.bridge.models import build_model
from llmkt_ray.training.bridge.own_trainers import OWN_TRAINERS
from llmkt_ray.training.bridge.registry import MODELS, NOT_OFFERED, model_entry
from llmkt_ray.training.isolation import seed_globals
from llmkt_ray.training.layers import model_taps, probe_layers, probe_split, resolve_layers
from llmkt_ray.training.spec import TrialArtifacts
from llmkt_ray.training.trial import evaluator, run_trial
from llmkt_ray.transfer.taps import candidates
from tests.tiny import tiny_study

from .conftest import make_spec, make_targets, same, twins
from .test_checkpoint import Killed, stop_after

NARROW = {
    "CDAE": {"embedding_size": 16},
    "ConvNCF": {"embedding_size": 8, "cnn_channels": [1, 4, 4, 4], "cnn_kernels": [2, 2, 2], "cnn_strides": [2, 2, 2]},
    "DiffRec": {"dims_dnn": [32]},
    "DMF": {"user_embedding_size": 16, "item_embedding_size": 16, "user_hidden_size_list": [16], "item_hidden_size_list": [16]},
    "ENMF": {"embedding_size": 16},
    "LDiffRec": {"dims_dnn": [16], "in_dims": [16], "out_dims": [16]},
    "MacridVAE": {"embedding_size": 16, "encoder_hidden_size": [32]},
    "MultiDAE": {"mlp_hidden_size": [32], "latent_dimension": 16},
    "MultiVAE": {"mlp_hidden_size": [32], "latent_dimension": 16},
    "NCL": {"embedding_size": 16, "num_clusters": 6, "warm_up_step": 2, "m_step": 2},
    "RaCT": {"mlp_hidden_size": [32], "latent_dimension": 32, "metrics_k": 10, "critic_layers": [8], "pretrain_epochs": 2},
    "RecVAE": {"hidden_dimension": 32, "latent_dimension": 16},
}
"""Layers narrower than the synthetic catalogue."""
GENERAL = sorted(name for name, entry in MODELS.items() if entry.family == "general" and not entry.is_reference)
WITHOUT_LAYER = {"FISM", "NAIS"}
USERS = {"batch_size": 16}


@pytest.mark.parametrize("model", GENERAL)
def test_every_general_model_on_offer_trains_in_both_kinds_of_arm_which_are_twins(data, model, run_steps):
    hyperparameters = NARROW.get(model, {})
    changes = {"epochs": 2, "hyperparameters": hyperparameters, "batch_size": 16 if MODELS[model].batches == "users" else 256}
    plain = run_trial(make_spec(data, model, **changes), TrialArtifacts(data))
    assert len(plain.epochs) == 2
    taps = candidates(probe_layers(model, data, hyperparameters))
    assert (not taps) == (model in WITHOUT_LAYER)
    if taps:
        tap = resolve_layers("auto", taps, model)[0]
        transfer = {"alpha": 0.5, "layer": tap.name, "targets_key": "targets", "balance": "initial"}
        spec = make_spec(data, model, "alpha0", **changes).model_copy(update={"arm": "treated", **transfer})
        treated = run_trial(spec, TrialArtifacts(data, make_targets(data, tap.width)))
        assert treated.facts["transfer_steps"] == treated.facts["batches_per_epoch"] > 0
        assert np.isfinite(treated.epochs[0]["loss_transfer"])
        twins(*run_steps)


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_a_sequence_layer_can_be_balanced(model):
    split = probe_split()
    tap = resolve_layers("auto", probe_layers(model, split, {}), model)[0]
    assert tap.alignment == "sequence"
    spec = make_spec(split, model, "alpha0", epochs=2).model_copy(
        update={"arm": "treated", "alpha": 0.5, "layer": tap.name, "targets_key": "targets", "balance": "initial"}
    )
    assert run_trial(spec, TrialArtifacts(split, make_targets(split, tap.width))).facts["beta"] != 1.0


def test_models_that_recbole_trains_in_its_own_way_are_trained_that_way_or_not_offered():
    own = {name.removesuffix("Trainer") for name in vars(recbole.trainer) if name.endswith("Trainer")}
    assert {name for name in MODELS if name in own} == set(OWN_TRAINERS)
    assert not own & set(NOT_OFFERED)
    assert all(trainer.name == f"{name}Trainer" and trainer.name in vars(recbole.trainer) for name, trainer in OWN_TRAINERS.items())


def test_every_model_of_recbole_is_offered_or_refused_with_its_reason():
    names = {family: set(class_names(package)) for family, package in FAMILIES.items()}
    assert set().union(*names.values()) == set(MODELS) | set(NOT_OFFERED)
    assert not set(MODELS) & set(NOT_OFFERED)
    assert all(name in names[entry.family] for name, entry in MODELS.items())
    for name, reason in NOT_OFFERED.items():
        with pytest.raises(TrainingError, match=re.escape(f"model '{name}' is not offered: {reason}; choose another")):
            model_entry(name)


def test_recvae_is_trained_as_recbole_does_by_two_optimizers(data):
    """Three passes for the encoder, the prior takes it over, one pass for the decoder: every epoch's value is equal."""
    spec = make_spec(data, "RecVAE", epochs=3, hyperparameters=NARROW["RecVAE"], **USERS)
    result = run_trial(spec, TrialArtifacts(data))
    built = build_model("RecVAE", data, hyperparameters=spec.hyperparameters, seed=derive_seed(spec.seed, "initialisation"))
    model = built.module
    validate = evaluator(spec, built, data, data.valid, known=[data.train_full], learnt=[data.train])
    batches = BatchSource(built, data.train.positives(), batch_size=16, seed=spec.seed)
    encoder = torch.optim.Adam(model.encoder.parameters(), lr=spec.learning_rate, fused=True)
    decoder = torch.optim.Adam(model.decoder.parameters(), lr=spec.learning_rate, fused=True)
    for epoch in range(1, 4):
        seed_globals(derive_seed(spec.seed, "dropout", epoch))
        model.train()
        for place, (optimizer, is_encoder) in enumerate(((encoder, True), (encoder, True), (encoder, True), (decoder, False))):
            if not is_encoder:
                model.update_prior()
            for batch in batches.epoch((epoch - 1) * 4 + place + 1):
                optimizer.zero_grad()
                model.calculate_loss(batch.interaction, encoder_flag=is_encoder).backward()
                optimizer.step()
        model.eval()
        assert result.epochs[epoch - 1]["valid_NDCG@10"] == validate().means["NDCG@10"]


def test_ngcf_drops_messages_in_training_and_not_in_evaluation(data):
    built = build_model("NGCF", data, hyperparameters={"message_dropout": 0.5}, seed=1)
    users = torch.arange(data.n_users)
    built.module.eval()
    one = built.scores(users).clone()
    built.forget_cached()
    torch.testing.assert_close(built.scores(users), one, rtol=0, atol=0)
    assert built.module.message_dropout == 0.5
    built.module.train()
    assert not torch.equal(built.module.forward()[0], built.module.forward()[0])


@pytest.mark.parametrize(("model", "settings"), [("NAIS", {}), ("NAIS", {"alpha": 0.5}), ("FISM", {"alpha": 0.5})])
def test_a_user_without_history_is_scored_by_the_biases_alone(data, model, settings):
    """RecBole's give NaN there: 0 / 0 items, or none of them to the power -alpha. Nobody else's score changes."""
    rows = data.train.where(data.train.user != 9)
    built = build_model(model, replace(data, train=rows), hyperparameters=settings | {"embedding_size": 8}, seed=1)
    module = built.module
    for parameter in module.parameters():  # biases start at 0, where a lost one would not show
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(2))
    users, items = torch.tensor([10, 10, 4]), torch.tensor([3, 8, 3])
    batch = built.labelled(users, items, torch.tensor([1.0, 0.0, 1.0]))
    loss = module.calculate_loss(batch)
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters() if p.grad is not None)
    with torch.no_grad():
        pairs, whole = module.forward(users, items), module.full_sort_predict(batch).view(3, -1)
        pairs, whole = (torch.sigmoid(pairs), whole) if model == "NAIS" else (pairs, torch.sigmoid(whole))
        bias = module.bias[items] if model == "NAIS" else module.user_bias[users] + module.item_bias[items]
        assert torch.allclose(pairs[:2], torch.sigmoid(bias[:2])), "user 10 is the split's user 9"
        assert torch.allclose(whole[2, 3], pairs[2], atol=1e-6)
        assert bool(torch.isfinite(whole).all())


def test_the_shims_refuse_another_text():
    class Other:
        def forward(self):
            return self

    with pytest.raises(TrainingError, match=r"NGCF is not that of RecBole 1\.2\.0"):
        shims._stop_ngcf_dropout_in_evaluation(Other)
    with pytest.raises(TrainingError, match=r"NCL is not that of RecBole 1\.2\.0"):
        shims._cluster_without_faiss(type("Ncl", (), {"run_kmeans": Other.forward}))
    with pytest.raises(TrainingError, match=r"DGCF is not that of RecBole 1\.2\.0"):
        shims._bound_dgcf_sample(type("Dgcf", (), {"__module__": __name__}))


def sample_cor_samples(n_users, n_items, cor_batch_size):
    """Stands for a DGCF of another RecBole."""
    return n_users, n_items, cor_batch_size


def test_a_probe_leaves_the_tensors_and_arrays_of_a_model_as_they_were(data):
    for model, names in (("DiffRec", ("Lt_count", "Lt_history")), ("LINE", ("random_list",))):
        built = build_model(model, data, hyperparameters=NARROW.get(model, {}), seed=1)
        before = [np.array(vars(built.module)[name]) for name in names]
        model_taps(built, data)
        for name, value in zip(names, before, strict=True):
            np.testing.assert_array_equal(np.array(vars(built.module)[name]), value)


@pytest.mark.parametrize(
    ("model", "batch_size"),
    [("DiffRec", 16), ("LDiffRec", 16), ("LINE", 256), ("RecVAE", 16), ("DGCF", 256), ("NCL", 256), ("RaCT", 16)],
)
@pytest.mark.parametrize("last", [2, 4])
def test_resume_is_bitwise_for_models_with_state_of_their_own(run, tmp_path, model, batch_size, last):
    changes = {"epochs": 5, "schedule": ScheduleConfig(handover="best_valid", optimizer="keep"), "batch_size": batch_size}
    changes["hyperparameters"] = NARROW.get(model, {}) | ({"history_num_per_term": 3} if "Diff" in model else {})
    options = {"checkpoint_dir": tmp_path, "checkpoint_interval_s": 0.0}
    with pytest.raises(Killed):
        run(model, "alpha0", options=options | {"on_epoch": stop_after(last)}, **changes)
    same(run(model, "alpha0", options=options, **changes), run(model, "alpha0", **changes))


@pytest.mark.parametrize(
    ("model", "given", "told"),
    [
        ("BPR", {"distribution": "none"}, "asks for distribution: 'none'; allowed is 'uniform' or 'popularity'"),
        ("BPR", {"dynamic": True}, "asks for candidate_num: 0"),
        ("BPR", {"dynamic": "yes"}, "asks for dynamic: 'yes'"),
        ("BPR", {"alpha": 0.5}, "asks for alpha: 0.5, which has no effect on uniform negatives"),
        ("BPR", {"distribution": "popularity", "alpha": -1}, "asks for alpha: -1"),
        ("BPR", {"candidate_num": 5}, "asks for candidate_num: 5"),
        ("BPR", {"sample_num": 0}, "asks for sample_num: 0"),
        ("BPR", {"sample_nmu": 2}, "sample_nmu"),
        ("DeepFM", {"dynamic": True, "candidate_num": 3}, "with the features of the positive item"),
        ("SASRec", {"distribution": "popularity"}, "sequential models draw 1 uniform negative"),
        ("BPR", None, "must be a mapping, but got None"),
        ("MultiVAE", {"sample_num": 2}, "draws no negatives"),
        ("SASRec", {"sample_num": 2}, "sequential models draw 1 uniform negative"),
    ],
)
def test_negatives_that_are_not_drawn_are_refused_before_training(model, given, told):
    with pytest.raises(TrainingError, match=told):
        probe_layers(model, None, {"train_neg_sample_args": given})


def test_a_model_that_fails_on_the_probe_is_a_layer_error(monkeypatch):
    split = probe_split()
    built = build_model("BPR", split, hyperparameters={}, seed=1)
    monkeypatch.setattr(built.module, "forward", lambda *_: random.sample([1], 2))
    with pytest.raises(LayerError, match="BPR fails in a training step on dataset 'probe' with ValueError: Sample larger"):
        model_taps(built, split)


def test_the_check_of_a_study_tells_all_of_this(tmp_path):
    def told(**changes):
        study = tiny_study(tmp_path, **changes)
        with pytest.raises(StudyError) as caught:
            check_study(study, store_of(study))
        return str(caught.value)

    assert "model 'KD_DAGFM' is not offered: RecBole trains it in three runs" in told(models=["KD_DAGFM"])
    asked = [{"name": "BPR", "hyperparameters": {"train_neg_sample_args": {"distribution": "zipf"}}}]
    assert "train_neg_sample_args of BPR asks for distribution: 'zipf'; allowed is 'uniform' or 'popularity'" in told(models=asked)
