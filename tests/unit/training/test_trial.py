"""`run_trial`: phases, selection, test opened once, determinism, arms as twins, transfer, errors."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmkt_ray.errors import EmbeddingError, LayerError, LlmktError, ResourceError, TrainingError
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.training import trial as trial_module
from llmkt_ray.training.layers import probe_layers, resolve_layers
from llmkt_ray.training.loop import make_adam
from llmkt_ray.training.spec import TrialArtifacts
from llmkt_ray.training.trial import run_trial

from .conftest import make_data, make_spec, make_targets, same

MODELS = ["BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("arm", ["baseline", "alpha0", "treated", "shuffled"])
def test_every_arm_trains_and_repeats_bitwise_after_other_trials(run, model, arm):
    first = run(model, arm)
    run("MultiVAE" if model != "MultiVAE" else "BPR", "treated", epochs=2)
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    same(first, run(model, arm))
    assert first.status == "done"
    assert 0 < first.test["NDCG@10"] < 1


@pytest.mark.parametrize("model", ["BPR", "MultiVAE"])
def test_a_trial_leaves_global_state_alone(run, model):
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = (torch.rand(3), random.random(), np.random.rand())  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    threads, anomaly = torch.get_num_threads(), torch.is_anomaly_enabled()
    run(model, "treated", options={"threads": 2})
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    assert np.random.rand() == expected[2]  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert torch.is_anomaly_enabled() == anomaly


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN"])
def test_training_learns(run, model):
    result = run(model, epochs=12)
    losses = [row["loss_model"] for row in result.epochs]
    assert losses[-1] < losses[0]
    assert result.test["NDCG@10"] > 1.3 * run("Random", "reference").test["NDCG@10"]


def test_arms_of_a_seed_are_twins(run):
    """Equal initial weights, batches and dropout: a treated trial's first loss is alpha0's, and phase 1 of baseline is alpha0's."""
    for model in ("BPR", "MultiVAE"):
        rows = {arm: run(model, arm, epochs=4).epochs for arm in ("baseline", "alpha0", "treated", "shuffled")}
        assert [r["loss_model"] for r in rows["baseline"][:2]] == [r["loss_model"] for r in rows["alpha0"][:2]]
    one_batch = {"batch_size": 100_000, "epochs": 2}
    for model in ("BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN"):
        first = {arm: run(model, arm, **one_batch).epochs[0]["loss_model"] for arm in ("baseline", "alpha0", "treated", "shuffled")}
        assert len(set(first.values())) == 1, model


def test_seeds_differ(run):
    assert run("BPR", seed_index=0).test != run("BPR", seed_index=1).test


def test_phases_hook_and_record(run):
    result = run("MultiVAE", "treated", epochs=5)
    assert [row["phase"] for row in result.epochs] == [1, 1, 2, 2, 2]
    for row in result.epochs:
        in_phase1 = row["phase"] == 1
        assert math.isfinite(row["loss_transfer"]) == in_phase1
        assert math.isfinite(row["gradient_ratio"]) == in_phase1
    assert result.facts["transfer_steps"] == 2 * result.facts["batches_per_epoch"]
    assert result.facts["beta"] != 1.0
    assert result.epochs[1]["loss_transfer"] < result.epochs[0]["loss_transfer"]


def test_balance_is_shared_by_the_control_twin(run):
    assert run("MultiVAE", "treated").facts["beta"] == run("MultiVAE", "shuffled").facts["beta"]


def test_a_twin_whose_texts_cover_more_users_teaches_those_that_treated_teaches_and_shares_its_balance(run, data):
    spec = make_spec(data, "MultiVAE", "template", targets_key="template", twin_key="targets")
    (tap,) = resolve_layers((spec.layer,), probe_layers("MultiVAE", data, spec.hyperparameters), "MultiVAE")
    treated = make_targets(data, tap.width)
    assert not treated.present.all()
    generator = np.random.default_rng(4)
    matrix = generator.standard_normal(treated.matrix.shape).astype(np.float32)
    everybody, same_users = (
        run_trial(spec, TrialArtifacts(data, replace(treated, key="template", matrix=matrix, present=present), twin=treated))
        for present in (np.ones_like(treated.present), treated.present)
    )
    assert everybody.facts["beta"] == run("MultiVAE", "treated").facts["beta"]
    assert [row["loss_transfer"] for row in everybody.epochs[:2]] == [row["loss_transfer"] for row in same_users.epochs[:2]]
    assert everybody.test == same_users.test


def test_baseline_has_one_phase_and_no_transfer(run):
    result = run("MultiVAE")
    assert {row["phase"] for row in result.epochs} == {1}
    assert result.facts["transfer_steps"] == 0


@pytest.mark.parametrize("arm", ["baseline", "alpha0", "treated"])
@pytest.mark.parametrize(("epochs", "switch", "first"), [(6, 0.5, 4), (7, 0.5, 4), (6, 0.34, 3)])
def test_selection_takes_the_best_epoch_after_the_switch_in_every_arm(run, arm, epochs, switch, first):
    result = run("MultiVAE", arm, epochs=epochs, schedule=ScheduleConfig(switch=switch), learning_rate=0.05)
    values = {row["epoch"]: row["valid_NDCG@10"] for row in result.epochs if row["epoch"] >= first}
    best = max(values, key=lambda epoch: (values[epoch], -epoch))
    assert result.best_epoch == best
    assert result.valid["NDCG@10"] == values[best]
    assert result.converged == (best != epochs)


def test_the_tested_weights_are_those_of_the_selected_epoch(run):
    """A trial that ends at the selected epoch has the same test values: nothing after it leaks in."""
    long = run("MultiVAE", "baseline", epochs=10, learning_rate=0.05, schedule=ScheduleConfig(switch=0.2))
    assert long.best_epoch < 10
    short = run("MultiVAE", "baseline", epochs=long.best_epoch, learning_rate=0.05, schedule=ScheduleConfig(switch=0.2))
    assert short.best_epoch == long.best_epoch
    np.testing.assert_array_equal(short.recommended, long.recommended)
    graph = run("LightGCN", "baseline", epochs=10, learning_rate=0.1, schedule=ScheduleConfig(switch=0.2))
    assert graph.best_epoch < 10
    np.testing.assert_array_equal(
        graph.recommended,
        run("LightGCN", "baseline", epochs=graph.best_epoch, learning_rate=0.1, schedule=ScheduleConfig(switch=0.2)).recommended,
    )


def test_evaluation_epochs(run):
    result = run("BPR", "alpha0", epochs=9, evaluate_every=3, schedule=ScheduleConfig(switch=0.5))
    evaluated = [row["epoch"] for row in result.epochs if not math.isnan(row["valid_NDCG@10"])]
    assert evaluated == [3, 4, 6, 9]  # 4 ends phase 1, 9 is the last
    assert result.best_epoch in (6, 9)


def test_test_is_opened_once_after_the_last_epoch(data, monkeypatch):
    """Test rows may hold anything while the trial trains: they are first read by `open_test`, when all epochs are over."""
    events = []
    real = trial_module.open_test
    monkeypatch.setattr(trial_module, "open_test", lambda *args: events.append("test") or real(*args))
    run_trial(make_spec(data, "BPR", epochs=3), TrialArtifacts(data), on_epoch=lambda row: events.append(row["epoch"]))
    assert events == [1, 2, 3, "test"]
    nobody = data.test.where(np.zeros(len(data.test), dtype=bool))
    seen = []
    with pytest.raises(TrainingError, match="held-out part has no positive rows"):
        run_trial(
            make_spec(data, "BPR", epochs=3), TrialArtifacts(replace(data, test=nobody)), on_epoch=lambda row: seen.append(row["epoch"])
        )
    assert seen == [1, 2, 3]


def test_test_rows_do_not_influence_training(data):
    other = replace(data, test=data.test.where(data.test.user % 2 == 0))
    one, two = (run_trial(make_spec(data, "BPR"), TrialArtifacts(split)) for split in (data, other))
    assert one.valid == two.valid
    assert [row["loss_model"] for row in one.epochs] == [row["loss_model"] for row in two.epochs]


def test_masks_use_the_full_train_split_when_train_is_thinned(data):
    kept = np.arange(len(data.train)) % 2 == 0
    thinned = replace(data, train=data.train_full.where(kept))
    result = run_trial(make_spec(data, "BPR"), TrialArtifacts(thinned))
    assert result.facts["n_train_rows"] < data.train.positive.sum()
    seen = set(zip(data.train_full.user.tolist(), data.train_full.item.tolist(), strict=True))
    offered = {(u, i) for u, row in zip(result.users["user"].tolist(), result.recommended.tolist(), strict=True) for i in row}
    assert not seen & offered


def test_users_and_lists_are_kept(run, data):
    result = run("BPR")
    assert result.users["user"].dtype == np.int32
    assert result.recommended.dtype == np.int32
    assert result.recommended.shape == (len(result.users["user"]), 10)
    for name in ("NDCG@10", "MAP@5"):
        assert result.users[name].mean() == pytest.approx(result.test[name], abs=1e-12)


@pytest.mark.parametrize("model", ["Pop", "ItemKNN", "EASE"])
def test_references_run_through_the_same_door(run, model):
    result = run(model, "reference")
    assert (result.best_epoch, result.converged, result.epochs) == (0, None, ())
    assert result.test["NDCG@10"] > 0
    assert set(result.valid) == set(result.test)


def test_pop_recommends_the_most_liked_train_items(run, data):
    result = run("Pop", "reference")
    counts = np.bincount(data.train.positives().item, minlength=data.n_items)
    user = int(result.users["user"][0])
    seen = {i for part in (data.train_full, data.valid) for u, i in zip(part.user.tolist(), part.item.tolist(), strict=True) if u == user}
    offered = [counts[i] for i in result.recommended[0]]
    best = sorted((int(c) for i, c in enumerate(counts) if i not in seen), reverse=True)
    assert offered == best[:10]


def test_measures_and_facts(run):
    result = run("BPR", "treated")
    assert result.measures["wall_s"] > 0
    assert result.measures["cpu_s"] > 0
    assert result.measures["peak_rss_bytes"] > 1 << 20
    assert result.measures["versions"]["recbole"] == "1.2.0"
    assert result.facts["n_parameters"] == (61 + 91) * 16
    assert result.facts["path"] == "lean"


def test_joint_pretrain_and_reversed(run):
    joint = run("MultiVAE", "treated", schedule=ScheduleConfig(kind="joint"))
    assert all(math.isfinite(row["loss_transfer"]) for row in joint.epochs)
    late = run("MultiVAE", "treated", schedule=ScheduleConfig(kind="reversed"))
    assert [math.isfinite(row["loss_transfer"]) for row in late.epochs] == [False, False, True, True]
    pre = run("MultiVAE", "treated", schedule=ScheduleConfig(kind="pretrain"))
    assert [math.isfinite(row["loss_transfer"]) for row in pre.epochs] == [True, True, False, False]


@pytest.mark.parametrize("handover", ["last", "best_valid"])
@pytest.mark.parametrize("optimizer", ["keep", "reset"])
def test_handover_and_optimizer(run, handover, optimizer):
    result = run("MultiVAE", "treated", epochs=6, schedule=ScheduleConfig(handover=handover, optimizer=optimizer), learning_rate=0.05)
    phase1 = {row["epoch"]: row["valid_NDCG@10"] for row in result.epochs if row["phase"] == 1}
    assert result.facts["handed_over"] == (3 if handover == "last" else max(phase1, key=lambda e: (phase1[e], -e)))


def test_student_projection_bridges_widths_and_slices_do_not_happen(run, data):
    narrow = make_targets(data, 5)
    with pytest.raises(LayerError, match="wide and the target 5"):
        run("MultiVAE", "treated", targets=narrow)
    assert run("MultiVAE", "treated", targets=narrow, projection="student").facts["transfer_steps"] > 0


def test_trap_05_alignment_is_checked_by_token(run, data):
    targets = make_targets(data, 8)
    order = np.random.default_rng(0).permutation(data.n_users)
    with pytest.raises((EmbeddingError, TrainingError)):
        run("MultiVAE", "treated", targets=replace(targets, user_tokens=targets.user_tokens[order]))
    strangers = np.asarray([f"x{i}" for i in range(data.n_users)])
    with pytest.raises((EmbeddingError, TrainingError)):
        run("MultiVAE", "treated", targets=replace(targets, user_tokens=strangers))


def test_trap_13_transfer_that_never_happens_fails(run, data):
    with pytest.raises(TrainingError, match="needs alpha above 0, a layer and targets"):
        run("MultiVAE", "treated", layer=None, targets=make_targets(data, 8))
    with pytest.raises(TrainingError, match="needs alpha above 0, a layer and targets"):
        run("MultiVAE", "treated", alpha=0.0)
    with pytest.raises(TrainingError, match="phase 1"):
        run("MultiVAE", "treated", epochs=3, schedule=ScheduleConfig(switch=0.1))
    with pytest.raises(TrainingError, match="transfers nothing"):
        run("MultiVAE", "alpha0", alpha=0.5)


def test_users_without_a_profile_stay_out_of_the_loss(run, data):
    targets = make_targets(data, 8)
    absent = np.flatnonzero(~targets.present)
    matrix = targets.matrix.copy()
    matrix[absent] = 1e6
    same(run("MultiVAE", "treated", targets=targets), run("MultiVAE", "treated", targets=replace(targets, matrix=matrix)))


@pytest.mark.parametrize(
    ("model", "arm", "changes", "told"),
    [
        ("NoSuch", "baseline", {}, "model 'NoSuch' is not known"),
        ("KD_DAGFM", "baseline", {}, "model 'KD_DAGFM' is not offered: .*three runs"),
        ("BPR", "baseline", {"split_key": "other"}, "was given split"),
        ("BPR", "baseline", {"select_on": "NDCG@99"}, "select_on"),
        ("BPR", "baseline", {"metrics": ("NDCG",), "select_on": "NDCG"}, "needs a depth"),
        ("BPR", "reference", {}, "cannot be a reference line"),
        ("EASE", "baseline", {}, "its only arm is 'reference'"),
        ("BPR", "alpha0", {"epochs": 1}, "at least 2 epochs"),
        ("BPR", "treated", {"layer": "user_embeding"}, "did you mean 'user_embedding'"),
        ("BPR", "treated", {"targets_key": "else"}, "specified with targets"),
        ("BPR", "treatd", {}, "not known"),
        ("BPR", "baseline", {"learning_rate": 1e30}, "NaN|nan"),
    ],
)
def test_errors_say_what_is_wrong(run, data, model, arm, changes, told):
    targets = make_targets(data, 16) if arm.startswith("treat") else None
    with pytest.raises(LlmktError, match=told):
        run(model, arm, targets=targets, **changes)


def test_a_gpu_that_is_not_there_is_refused(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match=r"resources\.trial\.gpus"):
        run("BPR", options={"device": "cuda"})
    with pytest.raises(TrainingError, match="thread"):
        run("BPR", options={"threads": 0})


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_the_optimizer_is_recboles_adam(data, weight_decay):
    """RecBole makes `torch.optim.Adam(parameters, lr, weight_decay)`; the fused form computes the same update."""
    spec = make_spec(data, "BPR", learning_rate=0.02, weight_decay=weight_decay)
    one, other = (torch.nn.Parameter(torch.linspace(-1, 1, 60).view(20, 3)) for _ in range(2))
    ours, theirs = make_adam(spec)([one]), torch.optim.Adam([other], lr=0.02, weight_decay=weight_decay, fused=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        one.grad = torch.randn(20, 3, generator=generator) * (torch.arange(20)[:, None] % 3 > 0)  # rows without a gradient too
        other.grad = one.grad.clone()
        ours.step(), theirs.step()
    assert float((one - torch.linspace(-1, 1, 60).view(20, 3)).abs().max()) > 0.05
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_another_split_gives_other_numbers():
    one, two = make_data(0), make_data(1)
    assert run_trial(make_spec(one, "BPR"), TrialArtifacts(one)).test != run_trial(make_spec(two, "BPR"), TrialArtifacts(two)).test
