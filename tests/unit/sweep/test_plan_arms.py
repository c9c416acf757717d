"""Arms that are compared must choose among the same epochs, at the same alpha."""

import pandas as pd
import pytest

from llmkt_ray.results.rows import to_row
from llmkt_ray.results.summary import summarise
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.run import store_of
from llmkt_ray.training.spec import TrialResult
from llmkt_ray.transfer.phases import PhasePlan
from tests.tiny import tiny_study

SCHEDULES = [{"switch": 0.25}, {"switch": 0.75}, {"kind": "joint"}, {"switch": 0.75, "handover": "best_valid"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("arms")


def trials_of(root, schedules, **changes):
    study = tiny_study(root, transfer={"alphas": (0.3, 0.5), "schedule": schedules}, **changes)
    return make_plan(study, store_of(study)).trials


def selectable(spec):
    plan = PhasePlan(spec.schedule, spec.epochs, one_phase=spec.arm == "baseline")
    return tuple(epoch for epoch in range(1, spec.epochs + 1) if plan.selectable(epoch))


def test_every_treated_trial_has_one_baseline_that_chooses_among_its_epochs(root):
    trials = trials_of(root, SCHEDULES)
    baselines = [selectable(spec) for spec in trials if spec.arm == "baseline"]
    assert sorted(baselines) == [(1, 2, 3, 4), (2, 3, 4), (4,)]
    assert {selectable(spec) for spec in trials if spec.arm != "reference"} == set(baselines)


@pytest.mark.parametrize("schedule", [{"switch": 0.75}, {"kind": "joint"}, {"kind": "reversed", "switch": 0.25}])
def test_one_schedule_has_one_baseline_a_seed(root, schedule):
    trials = trials_of(root, [schedule], seeds=2)
    assert sorted(spec.seed_index for spec in trials if spec.arm == "baseline") == [0, 1]
    assert len({selectable(spec) for spec in trials if spec.arm != "reference"}) == 1


def test_pretraining_is_one_treated_trial_at_alpha_1_with_its_twins_there(root):
    trials = trials_of(root, [{"kind": "pretrain"}])
    assert [(spec.arm, spec.alpha) for spec in trials if spec.layer] == [("treated", 1.0), ("shuffled", 1.0)]


def test_the_summary_compares_each_cell_with_the_baseline_of_its_window(root):
    def row(spec):
        value = 0.1 * len(selectable(spec)) + spec.alpha / 100
        result = TrialResult(spec=spec, status="done", valid={"NDCG@10": value}, test={"NDCG@10": value})
        frame = to_row(result, "study").to_pandas()
        return frame[[name for name in frame if ":" not in name]]

    trials = [spec for spec in trials_of(root, [*SCHEDULES, {"kind": "pretrain", "switch": 0.25}]) if spec.arm != "reference"]
    lines, _ = summarise(pd.concat([row(spec) for spec in trials], ignore_index=True), "NDCG@10", 0.5)
    found = {(line.cell["schedule"], line.cell["switch"]): line for line in lines}
    for (kind, switch), window in {("two_phase", "0.25"): 0.3, ("two_phase", "0.75"): 0.1, ("joint", "0.5"): 0.4}.items():
        line = found[kind, switch]
        assert line.arms["baseline"] == pytest.approx(window)
        assert line.gain == pytest.approx(0.005 / window)
    assert found["pretrain", "0.25"].arms["baseline"] == pytest.approx(0.3)
    assert found["pretrain", "0.25"].gain == pytest.approx(0.01 / 0.3), "its claim is at alpha 1"
