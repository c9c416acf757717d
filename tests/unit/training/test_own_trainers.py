"""Models with a trainer of their own in RecBole: trained step for step as it does, in arms that are twins, and their rows say so."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from llmkt_ray.errors import TrainingError
from llmkt_ray.seeds import derive_seed
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.training import stages as module
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.models import build_model
from llmkt_ray.training.isolation import seed_globals
from llmkt_ray.training.layers import probe_layers, resolve_layers
from llmkt_ray.training.spec import TrialArtifacts
from llmkt_ray.training.trial import evaluator, run_trial
from llmkt_ray.transfer.state import ModelState

from recbole.utils import get_model  # isort: skip - after the bridge's shims

from .conftest import make_data, make_spec, make_targets, same, twins
from .test_checkpoint import Killed, stop_after

NCL = {"embedding_size": 16, "num_clusters": 6, "warm_up_step": 1, "m_step": 2}
RACT = {"mlp_hidden_size": [32], "latent_dimension": 32, "metrics_k": 10, "critic_layers": [8], "pretrain_epochs": 3}
S3REC = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "pretrain_epochs": 2, "MAX_ITEM_LIST_LENGTH": 8}
OWN = {
    "NCL": {"hyperparameters": NCL, "batch_size": 256},
    "RaCT": {"hyperparameters": RACT, "batch_size": 16},
    "S3Rec": {"hyperparameters": S3REC, "batch_size": 64},
}
STAGES = {"NCL": (), "RaCT": ("actor_pretrain", "critic_pretrain"), "S3Rec": ("pretrain",)}


@pytest.fixture(scope="module")
def ordered():
    """The synthetic split in order of time, its items with genres that say a little of who likes them."""
    data = make_data()
    genres = [[f"g{item % 7}", f"g{item % 3}"] for item in range(data.n_items)]
    items = pa.table({"item_id": data.item_tokens.tolist(), "genres": genres, "year": [str(1990 + i % 9) for i in range(data.n_items)]})
    return replace(data, items=items, notes={"split": {"kind": "time"}})


def built(data, spec):
    model = build_model(spec.model, data, hyperparameters=spec.hyperparameters, seed=derive_seed(spec.seed, "initialisation"))
    return model, evaluator(spec, model, data, data.valid, known=[data.train_full], learnt=[data.train])


def test_ncl_clusters_every_m_step_and_counts_the_prototypes_after_the_warm_up_as_recbole_does(data):
    spec = make_spec(data, "NCL", epochs=4, **OWN["NCL"])
    result = run_trial(spec, TrialArtifacts(data))
    model, validate = built(data, spec)
    batches = BatchSource(model, data.train.positives(), batch_size=256, seed=spec.seed)
    optimizer = torch.optim.Adam(model.module.parameters(), lr=spec.learning_rate, fused=True)
    for index in range(4):  # NCLTrainer counts from 0
        seed_globals(derive_seed(spec.seed, "dropout", index + 1))
        model.module.train()
        if index % NCL["m_step"] == 0:
            model.module.e_step()
        for batch in batches.epoch(index + 1):
            optimizer.zero_grad()
            losses = model.module.calculate_loss(batch.interaction)
            assert len(losses) == 3
            (sum(losses[:-1]) if index < NCL["warm_up_step"] else sum(losses)).backward()
            optimizer.step()
        model.module.eval()
        assert result.epochs[index]["valid_NDCG@10"] == validate().means["NDCG@10"]


def test_ncls_clusters_are_those_of_its_vectors(data):
    """Planted groups are found, whatever the scale; the draws come from torch's generator alone."""
    model = build_model("NCL", data, hyperparameters=NCL, seed=1).module
    rng = np.random.default_rng(0)
    groups = np.arange(600) % 6
    x = (np.eye(6, 16)[groups] * 50 + rng.standard_normal((600, 16))).astype(np.float32)
    best = 0.0
    for seed in range(10):  # one start from random rows, as in faiss, may put two prototypes into one group
        torch.manual_seed(seed)
        centroids, nearest = model.run_kmeans(x)
        torch.manual_seed(seed)
        np.random.seed(seed + 1)  # noqa: NPY002
        again = model.run_kmeans(x)
        assert torch.equal(centroids, again[0])
        assert torch.equal(nearest, again[1])
        torch.testing.assert_close(centroids.norm(dim=1), torch.ones(6))
        own = [nearest[groups == group].mode().values for group in range(6)]
        best = max(best, len({int(one) for one in own}) / 6)
        for group in range(6):
            assert bool((nearest[groups == group] == own[group]).float().mean() > 0.3)
    assert best == 1


@pytest.mark.parametrize(
    ("model", "changes", "learn"),
    [
        ("RaCT", OWN["RaCT"], [{"encoder", "decoder"}, {"critic_net"}, {"encoder", "decoder"}]),
        ("S3Rec", OWN["S3Rec"], None),
        ("S3Rec", OWN["S3Rec"] | {"hyperparameters": S3REC | {"loss_type": "BPR"}}, None),
    ],
    ids=["RaCT", "S3Rec-CE", "S3Rec-BPR"],
)
def test_it_is_trained_as_recbole_does_in_runs_that_hand_over_by_files(data, ordered, tmp_path, model, changes, learn):
    """RecBole's own class builds each run from the file of the one before: who learns, by which loss, and all counts, are its own."""
    split = ordered if model == "S3Rec" else data
    spec = make_spec(split, model, epochs=3, **changes)
    result = run_trial(spec, TrialArtifacts(split))
    made, validate = built(split, spec)
    batches = BatchSource(made, split.train.positives(), batch_size=spec.batch_size, seed=spec.seed)
    previous, learning, stages = None, [], [*STAGES[model], "finetune"]
    for stage in stages:
        made.settings["train_stage"], made.settings["pre_model_path"] = stage, str(previous)
        recommender = get_model(model)(made.settings, made.dataset)
        if previous is None:
            recommender.load_state_dict(made.module.state_dict())
        made.module = made._recommender = recommender
        learning.append({name.split(".")[0] for name, parameter in recommender.named_parameters() if parameter.requires_grad})
        optimizer = torch.optim.Adam([p for p in recommender.parameters() if p.requires_grad], lr=spec.learning_rate, fused=True)
        for epoch in range(1, 1 + (3 if stage == "finetune" else spec.hyperparameters["pretrain_epochs"])):
            seed_globals(derive_seed(spec.seed, "dropout" if stage == "finetune" else stage, epoch))
            recommender.train()
            for batch in batches.epoch(epoch):
                optimizer.zero_grad()
                recommender.calculate_loss(batch.interaction).backward()
                optimizer.step()
            if stage == "finetune":
                recommender.eval()
                assert result.epochs[epoch - 1]["valid_NDCG@10"] == validate().means["NDCG@10"]
        previous = tmp_path / f"{stage}.pth"
        torch.save({"state_dict": recommender.state_dict()}, previous)
    assert learn is None or learning == learn


@pytest.mark.parametrize("model", sorted(OWN))
def test_it_learns(data, ordered, model):
    split, longer = (ordered if model == "S3Rec" else data), {"RaCT": {"hyperparameters": RACT | {"pretrain_epochs": 20}}}
    spec = make_spec(split, model, epochs=12, **OWN[model] | longer.get(model, {}))
    untrained, _ = built(split, spec)
    untrained.module.eval()
    known = {"known": [split.train_full, split.valid], "learnt": [split.train, split.valid]}
    before = evaluator(spec, untrained, split, split.test, **known)().means["NDCG@10"]
    assert run_trial(spec, TrialArtifacts(split)).test["NDCG@10"] > 2 * before


@pytest.mark.parametrize("model", sorted(OWN))
def test_arms_are_twins_the_row_says_so_and_the_profile_is_learnt(data, ordered, model, run_steps):
    split = ordered if model == "S3Rec" else data
    changes = OWN[model] | {"epochs": 4, "schedule": ScheduleConfig(switch=0.5)}
    plain = run_trial(make_spec(split, model, "alpha0", **changes), TrialArtifacts(split))
    tap = resolve_layers("auto", probe_layers(model, split, changes["hyperparameters"]), model)[0]
    given = {"alpha": 0.5, "layer": tap.name, "targets_key": "targets", "balance": "initial"}
    spec = make_spec(split, model, "alpha0", **changes).model_copy(update={"arm": "treated", **given})
    treated = run_trial(spec, TrialArtifacts(split, make_targets(split, tap.width)))
    twins(*run_steps)
    for result in (plain, treated):
        assert result.facts["trainer"] == f"{model}Trainer"
        before = dict.fromkeys(STAGES[model], changes["hyperparameters"].get("pretrain_epochs"))
        assert result.facts.get("epochs_before", {}) == before
    assert treated.facts["transfer_steps"] == 2 * treated.facts["batches_per_epoch"]
    assert treated.epochs[1]["loss_transfer"] < treated.epochs[0]["loss_transfer"]
    assert "trainer" not in run_trial(make_spec(data, "BPR", epochs=2), TrialArtifacts(data)).facts


def test_stages_are_computed_once_for_all_arms_and_not_again_on_resume(data, run, tmp_path, monkeypatch):
    trained = []
    original = module.make_adam
    monkeypatch.setattr(module, "make_adam", lambda spec: trained.append(spec.arm) or original(spec))
    changes = OWN["RaCT"] | {"epochs": 4}
    whole = {arm: run("RaCT", arm, **changes) for arm in ("alpha0", "treated")}
    assert trained == ["alpha0"] * 2 + ["treated"] * 2
    for arm, result in whole.items():
        same(run("RaCT", arm, options={"stages_dir": tmp_path}, **changes), result)
        assert run("RaCT", arm, options={"stages_dir": tmp_path}, **changes).facts["beta"] == result.facts["beta"]
    assert trained[4:] == ["alpha0"] * 2
    assert len(list(tmp_path.iterdir())) == 1
    run("RaCT", "alpha0", options={"stages_dir": tmp_path}, **changes | {"learning_rate": 0.02})
    assert len(list(tmp_path.iterdir())) == 2, "another setting has stages of its own"
    run("BPR", "alpha0", options={"stages_dir": tmp_path / "none"})
    assert not (tmp_path / "none").exists()
    options = {"checkpoint_dir": tmp_path / "own", "checkpoint_interval_s": 0.0}
    with pytest.raises(Killed):
        run("RaCT", "treated", options=options | {"on_epoch": stop_after(2)}, **changes)
    done = len(trained)
    same(run("RaCT", "treated", options=options, **changes), whole["treated"])
    assert len(trained) == done


@pytest.fixture
def treat(data, ordered):
    """Runs a treated trial of a model; returns its result, and the weights and other tensors that it was tested with."""

    def go(model, options=None, **changes):
        split, changes = (ordered if model == "S3Rec" else data), OWN[model] | changes
        tap = resolve_layers("auto", probe_layers(model, split, changes["hyperparameters"]), model)[0]
        given = {"arm": "treated", "alpha": 0.5, "layer": tap.name, "targets_key": "targets", "balance": "initial"}
        spec = make_spec(split, model, "alpha0", **changes).model_copy(update=given)
        tested = {}
        artifacts = TrialArtifacts(split, make_targets(split, tap.width))
        result = run_trial(
            spec, artifacts, on_tested=lambda built, _: tested.update(ModelState(built.module).copy()["model"]), **(options or {})
        )
        return result, tested

    return go


def bitwise(one, other):
    """Asserts that two trials have equal weights and rows."""
    same(one[0], other[0])
    for name in ("beta", "transfer_steps", "epochs_before"):
        assert one[0].facts.get(name) == other[0].facts.get(name)
    assert one[1].keys() == other[1].keys() != set()
    assert all(torch.equal(value, other[1][name]) for name, value in one[1].items())


@pytest.mark.parametrize("schedule", [{"optimizer": "keep", "handover": "best_valid"}, {"optimizer": "reset", "handover": "last"}])
@pytest.mark.parametrize("model", sorted(OWN))
def test_a_trial_that_goes_on_after_an_interruption_is_bitwise_the_unbroken_one(treat, tmp_path, model, schedule):
    """In phase 1, at its end, after the switch and late in phase 2; NCL makes clusters in epochs 1, 3 and 5 and keeps them between."""
    changes = {"epochs": 6, "schedule": ScheduleConfig(switch=0.5, **schedule)}
    whole = treat(model, **changes)
    for last in (1, 2, 3, 5):
        options = {"checkpoint_dir": tmp_path / str(last), "checkpoint_interval_s": 0.0}
        with pytest.raises(Killed):
            treat(model, options | {"on_epoch": stop_after(last)}, **changes)
        seen = []
        resumed = treat(model, options | {"on_epoch": lambda row, seen=seen: seen.append(row["epoch"])}, **changes)
        assert seen == list(range(last + 1, 7))
        bitwise(resumed, whole)


@pytest.mark.parametrize("model", sorted(OWN))
def test_a_trial_that_takes_over_a_phase_1_is_bitwise_the_one_that_computed_it(treat, tmp_path, model):
    changes = {"epochs": 4, "schedule": ScheduleConfig(switch=0.5)}
    whole = treat(model, **changes)
    for _ in ("computes", "takes over"):
        bitwise(treat(model, {"phase1_dir": tmp_path}, **changes), whole)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("model", sorted(name for name, stages in STAGES.items() if stages))
def test_an_interruption_before_the_first_epoch_changes_nothing(treat, tmp_path, monkeypatch, model):
    """In the last epoch of every stage: half of what comes before the trial is never taken for the whole of it."""
    whole = treat(model, epochs=2)
    options = {"checkpoint_dir": tmp_path / "own", "stages_dir": tmp_path / "stages", "checkpoint_interval_s": 0.0}
    epochs = OWN[model]["hyperparameters"]["pretrain_epochs"]
    original = module.seed_globals
    for stage in STAGES[model]:
        last = derive_seed(make_spec(make_data(), model, **OWN[model]).seed, stage, epochs)

        def killed(seed, last=last):
            if seed == last:
                raise Killed
            original(seed)

        with monkeypatch.context() as patch:
            patch.setattr(module, "seed_globals", killed)
            with pytest.raises(Killed):
                treat(model, options, epochs=2)
        assert not (tmp_path / "own").exists()
    bitwise(treat(model, options, epochs=2), whole)


@pytest.mark.parametrize(
    ("model", "changes", "told"),
    [
        (
            "NCL",
            {"hyperparameters": {}},
            "NCL makes 1000 clusters of 60 users and of 90 items; set its hyper-parameter num_clusters to 1 to 61",
        ),
        ("RaCT", {"hyperparameters": RACT | {"metrics_k": 100}}, "learns NDCG@100, but there are 90 items.*metrics_k to 1 to 91"),
        ("RaCT", {"batch_size": 59}, "the last batch holds one user alone; set another batch_size"),
        ("RaCT", {"hyperparameters": RACT | {"train_stage": "finetune"}}, "'train_stage' of RaCT belongs to the study; set there: none"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_what_is_allowed(data, model, changes, told):
    with pytest.raises(TrainingError, match=told):
        run_trial(make_spec(data, model, **OWN[model] | changes), TrialArtifacts(data))


@pytest.mark.parametrize(
    ("hyperparameters", "told"),
    [
        ({"item_attribute": "class"}, "have no field 'class'; set its hyper-parameter item_attribute to one of: genres, year"),
        ({"loss_type": "MSE"}, "loss_type of S3Rec 'MSE' is not known"),
    ],
)
def test_s3rec_needs_a_field_of_the_items_and_a_loss(ordered, hyperparameters, told):
    with pytest.raises(TrainingError, match=told):
        run_trial(make_spec(ordered, "S3Rec", hyperparameters=S3REC | hyperparameters), TrialArtifacts(ordered))


def test_s3rec_learns_from_the_field_that_is_named_and_a_check_without_data_needs_none(ordered):
    losses = []
    for attribute in ("genres", "year"):
        spec = make_spec(ordered, "S3Rec", epochs=2, hyperparameters=S3REC | {"item_attribute": attribute})
        losses.append(run_trial(spec, TrialArtifacts(ordered)).epochs[0]["loss_model"])
    assert losses[0] != losses[1]
    taps = {tap.name: tap for tap in probe_layers("S3Rec", None, {"item_attribute": "year"})}
    assert taps["aap_norm"].reason == "never fires in a training step", "it is of the pre-training"


def test_the_critic_of_ract_is_never_what_auto_stands_for():
    """It gives a term of the loss and no part of a score; its narrow layers would win otherwise."""
    taps = probe_layers("RaCT", None, {})
    critics = [tap for tap in taps if tap.name.startswith("critic_net.") and tap.knows_user]
    assert min(tap.width for tap in critics if tap.width >= 8) < min(tap.width for tap in taps if tap.name.startswith("decoder"))
    assert resolve_layers("auto", taps, "RaCT")[0].name == "decoder:input"
