"""Phase 1 of trials that differ in phase 2 alone is computed once, and going on from it gives the same trial bit for bit."""

import itertools

import pytest

from llmkt_ray.study import ScheduleConfig
from llmkt_ray.training.checkpoint import CheckpointFile
from llmkt_ray.training.loop import TrainingLoop

from .conftest import make_spec, same

PHASE2 = [
    {"handover": handover, "optimizer": optimizer} for handover, optimizer in itertools.product(("last", "best_valid"), ("keep", "reset"))
]


@pytest.fixture
def trained(monkeypatch):
    """The epochs that were really trained."""
    epochs, original = [], TrainingLoop._train

    def train(self, epoch):
        epochs.append(epoch)
        original(self, epoch)

    monkeypatch.setattr(TrainingLoop, "_train", train)
    return epochs


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN"])
def test_forked_trials_are_bitwise_the_unforked_ones(run, trained, tmp_path, model):
    for place, phase2 in enumerate(PHASE2):
        changes = {"epochs": 6, "schedule": ScheduleConfig(**phase2)}
        alone = run(model, "treated", **changes)
        trained.clear()
        forked = run(model, "treated", options={"phase1_dir": tmp_path}, **changes)
        assert trained == ([1, 2, 3, 4, 5, 6] if place == 0 else [4, 5, 6])
        same(forked, alone)
        timing = forked.facts.get("phase1_saved_s")
        assert (timing is None) == (place == 0), "the row says that phase 1 was taken over"
        assert {k: v for k, v in forked.facts.items() if not k.endswith("_s")} == {
            k: v for k, v in alone.facts.items() if not k.endswith("_s")
        }
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("first", ["baseline", "alpha0", "reversed"])
def test_the_plain_phase_1_is_one(run, trained, tmp_path, first):
    """Whoever computes it: a baseline, an alpha0, or a trial that transfers later, with or without a projection."""
    late = ScheduleConfig(kind="reversed", handover="best_valid", optimizer="keep")
    trials = {
        "baseline": ("baseline", {}),
        "alpha0": ("alpha0", {"schedule": ScheduleConfig(handover="best_valid", optimizer="keep")}),
        "reversed": ("treated", {"schedule": late, "projection": "student"}),
        "reversed, other loss": ("treated", {"schedule": late, "alpha": 0.3, "loss": "cosine"}),
        "reversed, shuffled": ("shuffled", {"schedule": late}),
    }
    run(*("BPR", trials[first][0]), options={"phase1_dir": tmp_path}, **trials[first][1])
    for name, (arm, changes) in trials.items():
        trained.clear()
        forked = run("BPR", arm, options={"phase1_dir": tmp_path}, **changes)
        assert trained == [3, 4], name
        same(forked, run("BPR", arm, **changes))


def test_a_projection_that_learnt_in_phase_1_is_taken_over(run, tmp_path):
    for optimizer in ("keep", "reset"):
        changes = {"projection": "student", "schedule": ScheduleConfig(handover="best_valid", optimizer=optimizer)}
        same(run("MultiVAE", "treated", options={"phase1_dir": tmp_path}, **changes), run("MultiVAE", "treated", **changes))
    assert len(list(tmp_path.iterdir())) == 1


def test_two_lengths_with_an_equal_phase_1_share_it(run, trained, tmp_path):
    run("BPR", "treated", options={"phase1_dir": tmp_path}, epochs=4)
    trained.clear()
    changes = {"epochs": 8, "schedule": ScheduleConfig(switch=0.25, alpha="constant")}
    forked = run("BPR", "treated", options={"phase1_dir": tmp_path}, **changes)
    assert trained == [3, 4, 5, 6, 7, 8]
    same(forked, run("BPR", "treated", **changes))


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("treated", {"alpha": 0.3}),
        ("shuffled", {}),
        ("alpha0", {}),
        ("treated", {"loss": "cosine"}),
        ("treated", {"seed_index": 1}),
        ("treated", {"learning_rate": 0.02}),
        ("treated", {"balance": "none"}),
        ("treated", {"evaluate_every": 2}),
        ("treated", {"schedule": ScheduleConfig(switch=0.25)}),
        ("treated", {"schedule": ScheduleConfig(alpha="linear")}),
        ("treated", {"schedule": ScheduleConfig(kind="pretrain")}),
        ("treated", {"schedule": ScheduleConfig(freeze={"phase1": ("item_*",)})}),
    ],
)
def test_what_changes_phase_1_changes_its_key(data, arm, changes):
    assert make_spec(data, "BPR", arm, **changes).phase1_key != make_spec(data, "BPR", "treated").phase1_key


def test_without_a_switch_there_is_no_phase_1_to_share(data):
    assert make_spec(data, "BPR", "treated", schedule=ScheduleConfig(kind="joint")).phase1_key is None
    assert make_spec(data, "Pop", "reference").phase1_key is None


def test_a_damaged_phase_1_is_computed_again(run, data, trained, tmp_path):
    spec = make_spec(data, "BPR", "alpha0")
    (tmp_path / f"{spec.phase1_key}.pt").write_bytes(b"half a file")
    same(run("BPR", "alpha0", options={"phase1_dir": tmp_path}), run("BPR", "alpha0"))
    assert trained[:4] == [1, 2, 3, 4]


def test_a_phase_1_that_began_alone_is_not_the_one_that_others_hand_over_from(run, data, trained, tmp_path):
    """Alone in its batch, a trial with hand-over `last` does not look for the best epoch; stopped, it goes on in one that shares."""
    changes = {"epochs": 12, "learning_rate": 0.4, "schedule": ScheduleConfig()}
    own = {"checkpoint_dir": tmp_path / "own", "checkpoint_interval_s": 0.0}

    def stop(row):
        if row["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("BPR", "alpha0", options=own | {"on_epoch": stop}, **changes)
    same(run("BPR", "alpha0", options=own | {"phase1_dir": tmp_path / "shared"}, **changes), run("BPR", "alpha0", **changes))
    best = changes | {"schedule": ScheduleConfig(handover="best_valid")}
    trained.clear()
    same(run("BPR", "alpha0", options={"phase1_dir": tmp_path / "shared"}, **best), run("BPR", "alpha0", **best))
    assert trained[0] == 1, "what the first trial overlooked is trained again"


def test_the_own_checkpoint_goes_before_the_shared_phase_1(run, data, trained, tmp_path):
    options = {"checkpoint_dir": tmp_path / "own", "checkpoint_interval_s": 0.0, "phase1_dir": tmp_path / "shared"}

    def stop(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("BPR", "alpha0", options=options | {"on_epoch": stop})
    assert CheckpointFile(tmp_path / "shared", str(make_spec(data, "BPR", "alpha0").phase1_key)).path.exists()
    trained.clear()
    same(run("BPR", "alpha0", options=options), run("BPR", "alpha0"))
    assert trained[0] == 4
