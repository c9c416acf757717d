"""A sweep computes the phase 1 of trials that differ in phase 2 alone once, and its rows are those of trials by themselves."""

import io
import json

import pandas as pd
from rich.console import Console

from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.sweep.phase1 import SharedPhases
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.run import run_study, scratch_folder, store_of
from llmkt_ray.training.loop import TrainingLoop
from llmkt_ray.training.trial import run_trial
from tests.tiny import tiny_study

QUIET = Console(file=io.StringIO())
TRANSFER = {
    "alphas": (0.5,),
    "schedule": [{"optimizer": optimizer, "handover": h} for optimizer in ("keep", "reset") for h in ("last", "best_valid")],
}


def alone(spec, artifacts, *, phase1_dir=None, **settings):
    return run_trial(spec, artifacts, **settings)


def numbers(study) -> pd.DataFrame:
    return Ledger(study_folder(study)).trials().sort_values("trial_key").reset_index(drop=True)


def test_a_sweep_computes_each_phase_1_once_and_its_rows_are_those_of_trials_alone(tmp_path, monkeypatch):
    trained, original = [], TrainingLoop._train

    def train(self, epoch):
        trained.append(self._spec.phase1_key if epoch <= self._plan.phase1_epochs else None)
        original(self, epoch)

    monkeypatch.setattr(TrainingLoop, "_train", train)
    study = tiny_study(tmp_path / "shared", transfer=TRANSFER)
    run_study(study, executor="loop", console=QUIET)
    specs = [spec for spec in make_plan(study, store_of(study)).trials if spec.arm != "reference"]
    keys = {spec.phase1_key for spec in specs}
    assert (len(specs), len(keys)) == (1 + 3 * 4, 3), "baseline and four schedules of alpha0, treated, shuffled: three first phases"
    assert {key: trained.count(key) for key in keys} == dict.fromkeys(keys, 2), "two epochs each, once"
    separate = tiny_study(tmp_path / "alone", transfer=TRANSFER)
    run_study(separate, executor="loop", console=QUIET, run_trial=alone)
    one, other = numbers(study), numbers(separate)
    columns = [name for name in one.columns if name not in (*MEASUREMENT_COLUMNS, "study_key", "trial_key", "split_key")]
    keep = [name for name in columns if not name.endswith("_key")]
    by = ["arm", "facts"]
    pd.testing.assert_frame_equal(one[keep].sort_values(by, ignore_index=True), other[keep].sort_values(by, ignore_index=True))
    said = [json.loads(timings).get("phase1_saved_s") for timings in one["timings"]]
    assert sum(value is not None for value in said) == len(specs) - len(keys), "a row tells that its phase 1 was taken over"
    assert not (store_of(study) and (tmp_path / scratch_folder(study) / "phase1").exists()), "nothing is left behind"


def test_a_trial_waits_while_another_computes_its_phase_1(tmp_path):
    study = tiny_study(tmp_path, transfer=TRANSFER)
    run_study(study, executor="loop", console=QUIET, limit=0)
    specs = [spec for spec in make_plan(study, store_of(study)).trials if spec.arm in ("baseline", "alpha0")]
    treated = [spec for spec in make_plan(study, store_of(study)).trials if spec.arm == "treated"]
    phases = SharedPhases([*specs, *treated], tmp_path / "phase1")
    first, *others = specs
    assert phases.ready([first, *others], []) is first
    assert phases.ready([*others, *treated], [first]) is treated[0], "another phase 1 goes before waiting"
    assert phases.ready(others, [first]) is None
    elsewhere = SharedPhases([*specs, *treated], tmp_path / "phase1", is_seen=False)
    assert elsewhere.ready(others, [first]) is others[0], "its end would lie on another machine's disk: waiting would never end"
    assert elsewhere.of(first) == first.phase1_key, "a trial may still find it on its machine"
    (tmp_path / "phase1").mkdir()
    (tmp_path / "phase1" / f"{first.phase1_key}.pt").touch()
    assert phases.ready(others, [first]) is others[0], "phase 1 is there: its phase 2 need not be waited for"
    assert phases.ready(others, []) is others[0], "the one that computed it is gone, with or without a result"
