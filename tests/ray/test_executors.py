"""The same study on both executors: the same rows, the same failures, the same resume."""

import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from rich.console import Console

from llmkt_ray.errors import ResourceError, StorageError, SweepError
from llmkt_ray.results.card import read_card
from llmkt_ray.results.folder import artifacts_folder, locked, study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.study import ResourcesConfig
from llmkt_ray.sweep import tuner
from llmkt_ray.sweep.execute import load_artifacts
from llmkt_ray.sweep.pipeline import TargetNode
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.progress import Progress
from llmkt_ray.sweep.run import run_study, store_of
from llmkt_ray.sweep.tuner import RayExecutor
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from llmkt_ray.training.trial import run_trial
from tests.tiny import tiny_study

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def global_state_back() -> Iterator[None]:
    """Puts back what `poisoned` disturbs where it runs in this very process."""
    arguments = list(sys.argv)
    yield
    sys.argv[:] = arguments
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)


def numbers(study) -> pd.DataFrame:
    frame = Ledger(study_folder(study)).trials()
    return frame.drop(columns=[*MEASUREMENT_COLUMNS, "study_key"])


def run(study, executor, **settings):
    quiet = Console(file=io.StringIO())
    return run_study(study, executor=executor, console=quiet, **settings)


def failing(spec: TrialSpec, artifacts: TrialArtifacts, **_: object) -> TrialResult:
    if spec.arm == "shuffled":
        raise ValueError(f"no luck at {spec.alpha}")
    return TrialResult(spec=spec, status="done", valid=dict.fromkeys(spec.metrics, 0.5), test=dict.fromkeys(spec.metrics, 0.5))


def poisoned(spec: TrialSpec, artifacts: TrialArtifacts, **settings: Any) -> TrialResult:
    """The real trial in a process whose global state the trial before left in disorder; its host names the process."""
    result = run_trial(spec, artifacts, **settings)
    random.seed(os.getpid())
    np.random.seed(os.getpid())  # noqa: NPY002 - this is the state that must not matter
    torch.manual_seed(os.getpid())
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    sys.argv.append("--learning_rate=0.5")
    return replace(result, measures={**result.measures, "host": f"process {os.getpid()}"})


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The rows of the tiny study from the plain loop."""
    study = tiny_study(tmp_path_factory.mktemp("reference"))
    summary = run(study, "loop")
    assert (summary.ran, summary.done, summary.failed) == (6, 6, 0)
    return study


def test_the_rows_are_those_of_the_loop_bitwise(tmp_path, executor, reference):
    study = tiny_study(tmp_path)
    run(study, executor)
    mine, theirs = numbers(study), numbers(reference)
    assert len(mine) == 6
    pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    assert mine["test_NDCG@10"].notna().all()
    a, b = Ledger(study_folder(study)), Ledger(study_folder(reference))
    pd.testing.assert_frame_equal(a.epochs().drop(columns="duration_s"), b.epochs().drop(columns="duration_s"), check_exact=True)
    for key in mine["trial_key"]:
        pd.testing.assert_frame_equal(a.users(key), b.users(key), check_exact=True)
        np.testing.assert_array_equal(a.recommended(key), b.recommended(key))


def test_run_again_does_nothing_and_a_missing_row_is_made_again(tmp_path, executor, reference):
    study = tiny_study(tmp_path)
    run(study, executor)
    folder = tmp_path / "results" / "tiny"
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert run(study, executor).ran == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == stamps
    lost, damaged = sorted((folder / "ledger" / "trials").iterdir())[:2]
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert run(study, executor).ran == 2
    pd.testing.assert_frame_equal(numbers(study), numbers(reference), check_exact=True)


def test_a_failing_trial_is_a_row_and_the_others_go_on(tmp_path, executor):
    study = tiny_study(tmp_path)
    summary = run(study, executor, run_trial=failing)
    assert (summary.done, summary.failed) == (5, 1)
    rows = Ledger(summary.folder).trials()
    (failed,) = rows[rows["status"] == "failed"].to_dict("records")
    assert (failed["arm"], failed["error_kind"], failed["error_message"]) == ("shuffled", "ValueError", "no luck at 0.5")
    assert "no luck at 0.5" in failed["error_traceback"]
    assert "raise ValueError" in failed["error_traceback"]
    assert run(study, executor, run_trial=failing).ran == 0, "a failed trial is not tried again unless asked"
    again = run(study, executor, retry_failed=True)
    assert (again.ran, again.failed) == (1, 0)


def test_targets_are_made_for_the_trials_that_run_only(tmp_path, executor):
    study = tiny_study(tmp_path, reduction=[{"method": "pca"}, {"method": "random_projection"}])
    summary = run(study, executor, limit=1)
    assert summary.ran == 1
    assert len(list((tmp_path / "results" / "artifacts" / "targets").iterdir())) == 1
    card = read_card(summary.folder)
    assert len(card["targets"]) == 1
    assert len(card["cells"]) == 2
    assert json.dumps(card)


def ends(node: TargetNode, *_: object) -> None:
    """What makes targets, where the node runs out of memory (Ray's monitor kills as the kernel does) or the reducer breaks."""
    if node.draw is None:
        os.kill(os.getpid(), signal.SIGKILL)
    raise ZeroDivisionError("no neighbours")


@pytest.mark.usefixtures("two_workers")
def test_what_ends_the_making_of_an_artifact_is_told_in_one_sentence(tmp_path, monkeypatch):
    """Raised as it comes from Ray, it would be a traceback that names no artifact."""
    study = tiny_study(tmp_path)
    (node,) = make_plan(study, store_of(study)).targets
    task = ray.remote(num_cpus=1, max_retries=0)(ends)
    monkeypatch.setattr(tuner, "_compute", task)
    executor, progress = RayExecutor(study.resources), Progress(Console(file=io.StringIO()))
    lost = r"the worker that made targets of toy, template, .* was lost \(WorkerCrashedError\): .* lower `reduction.fit_sample` \(20000 "
    with pytest.raises(ResourceError, match=lost):
        executor.compute([node], store_of(study), progress)
    broken = r"targets of toy, template, .* cannot be made \(ZeroDivisionError: no neighbours\); what is finished stays"
    with pytest.raises(SweepError, match=broken):
        executor.compute([replace(node, draw=0)], store_of(study), progress)


def test_a_damaged_artifact_is_made_again_with_the_same_bytes(tmp_path, executor):
    study = tiny_study(tmp_path)
    run(study, executor, limit=1)
    (array,) = (tmp_path / "results" / "artifacts" / "targets").rglob("arrays.safetensors")
    before = array.read_bytes()
    array.write_bytes(before[:-10])
    assert run(study, executor).failed == 0
    assert array.read_bytes() == before


def test_a_spent_budget_stops_a_run_and_leaves_nothing_half(tmp_path, executor, reference):
    prices = {"cpu_hour": 1.0, "concurrency": 1}
    pilot = run(tiny_study(tmp_path, resources=prices, budget={"money": 1e-9}), executor)
    assert (pilot.ran, pilot.failed, pilot.left_out) == (1, 0, 5)
    assert pilot.stopped is not None
    assert arms(tmp_path) == {("treated", 0.5)}, "the most telling trial is the first"
    study = tiny_study(tmp_path, resources=prices)
    assert run(study, executor).ran == 5
    pd.testing.assert_frame_equal(numbers(study), numbers(reference), check_exact=True)


@pytest.mark.parametrize(
    ("budget", "ran"), [({"trials": 3}, {("treated", 0.5), ("alpha0", 0.0), ("shuffled", 0.5)}), ({"hours": 1e-9}, set())]
)
def test_a_pilot_of_trials_or_hours_runs_the_claim_and_its_twins_first(tmp_path, executor, budget, ran):
    pilot = run(tiny_study(tmp_path, budget=budget), executor)
    assert (pilot.ran, pilot.failed, pilot.left_out) == (len(ran), 0, 6 - len(ran))
    assert arms(tmp_path) == ran
    assert run(tiny_study(tmp_path), executor).ran == 6 - len(ran)


def arms(root: Path) -> set[tuple[str, float]]:
    rows = Ledger(root / "results" / "tiny").trials()
    return set(zip(rows["arm"], rows["alpha"], strict=True)) if len(rows) else set()


def test_a_folder_in_use_is_refused(tmp_path, executor):
    study = tiny_study(tmp_path)
    with locked(study_folder(study)), pytest.raises(StorageError, match="is being run already"):
        run(study, executor)


@pytest.mark.usefixtures("two_workers")
def test_one_worker_and_two_give_the_same_rows_also_in_batches(tmp_path, monkeypatch, reference):
    """A study of thousands of trials is given to Tune 500 at a time; here four."""
    sizes: list[int] = []
    begin = tuner._Feed.__init__

    def noted(feed: tuner._Feed, queue: tuner._Queue, *more: Any) -> None:
        sizes.append(len(queue.waiting))
        begin(feed, queue, *more)

    monkeypatch.setattr(tuner._Feed, "__init__", noted)
    for concurrency, batch in ((1, 500), (2, 4)):
        monkeypatch.setattr(tuner, "TUNER_TRIALS", batch)
        study = tiny_study(tmp_path / str(concurrency), resources={"concurrency": concurrency})
        run(study, "ray")
        pd.testing.assert_frame_equal(numbers(study), numbers(reference), check_exact=True)
    assert sizes == [6, 4, 2]


def met(spec: TrialSpec, artifacts: TrialArtifacts, *, checkpoint_dir: Path, **_: object) -> TrialResult:
    """A trial that ends when four run at once, or fails after five minutes: workers take long to start on a busy machine."""
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    (checkpoint_dir / f"{spec.key}.here").touch()
    until = time.monotonic() + 300
    while len(list(checkpoint_dir.glob("*.here"))) < 4:
        if time.monotonic() > until:
            raise TimeoutError("four trials of half a CPU do not run at once on two CPUs")
        time.sleep(0.05)
    return TrialResult(spec=spec, status="done", valid=dict.fromkeys(spec.metrics, 0.5), test=dict.fromkeys(spec.metrics, 0.5))


@pytest.mark.usefixtures("two_workers")
def test_trials_that_ask_for_fractions_share_a_cpu(tmp_path, monkeypatch):
    study = tiny_study(tmp_path, resources={"trial": {"cpus": 0.5}}, evaluation={"references": []}, controls=["alpha0", "shuffled"])
    assert RayExecutor(study.resources).workers() == 4
    summary = run(study, "ray", run_trial=met)
    assert (summary.ran, summary.failed) == (4, 0)
    monkeypatch.setattr(tuner, "capacity", lambda: {"CPU": 64.0, "GPU": 2.0})
    for trial, concurrency, expected in (({"gpus": 0.25}, None, 8), ({"gpus": 0.3}, None, 6), ({"gpus": 0.25}, 5, 5)):
        resources = ResourcesConfig.model_validate({"trial": trial, "concurrency": concurrency})
        assert RayExecutor(resources).workers() == expected


def counted(spec: TrialSpec, artifacts: TrialArtifacts, *, checkpoint_dir: Path, **_: object) -> TrialResult:
    """A trial that keeps how many of them run at its end, itself included."""
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    here = checkpoint_dir / f"{spec.key}.here"
    here.touch()
    time.sleep(0.5)
    at_once = len(list(checkpoint_dir.glob("*.here")))
    here.unlink()
    values = dict.fromkeys(spec.metrics, 0.5)
    return TrialResult(spec=spec, status="done", valid=values, test=values, facts={"at_once": at_once})


@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize(("cpus", "concurrency", "most"), [(1, None, 2), (0.5, 3, 3), (1, 1, 1), (2, 4, 1)])
def test_no_more_trials_run_at_once_than_the_cluster_holds_and_the_study_allows(tmp_path, cpus, concurrency, most):
    study = tiny_study(tmp_path, resources={"trial": {"cpus": cpus}, "concurrency": concurrency})
    assert RayExecutor(study.resources).workers() == most
    summary = run(study, "ray", run_trial=counted)
    assert (summary.ran, summary.failed) == (6, 0)
    at_once = [json.loads(facts)["at_once"] for facts in Ledger(summary.folder).trials()["facts"]]
    assert 1 <= max(at_once) <= most, at_once


@pytest.mark.usefixtures("two_workers")
def test_a_trial_that_asks_for_more_than_a_node_has_is_refused(tmp_path):
    from llmkt_ray.errors import ResourceError

    study = tiny_study(tmp_path, resources={"trial": {"cpus": 64}})
    with pytest.raises(ResourceError, match="asks for CPU 64, but the largest node has CPU 2"):
        run(study, "ray")


def test_actors_are_reused_and_a_trial_sees_nothing_of_the_one_before(tmp_path, executor, reference):
    study = tiny_study(tmp_path, resources={"concurrency": 1})
    run(study, executor, run_trial=poisoned)
    pd.testing.assert_frame_equal(numbers(study), numbers(reference), check_exact=True)
    workers = Ledger(study_folder(study)).trials()["host"].value_counts()
    assert workers.max() > 1, "no process ran two trials: reuse was not tested"


def test_trials_that_differ_in_phase_2_alone_share_their_phase_1_on_both_executors(tmp_path, executor):
    """Forked or not, on one worker or two, the numbers are those of trials by themselves; the rows say who forked."""
    schedules = [{"optimizer": "keep"}, {"optimizer": "reset"}, {"handover": "best_valid"}]
    study = tiny_study(tmp_path, transfer={"alphas": (0.5,), "schedule": schedules})
    run(study, executor)
    rows = Ledger(study_folder(study)).trials()
    assert set(rows["status"]) == {"done"}
    forked = rows[[json.loads(timings).get("phase1_saved_s") is not None for timings in rows["timings"]]]
    trained = rows[rows["arm"] != "reference"]
    assert len(trained) - len(forked) == 3, "one plain phase 1, one treated, one shuffled"
    data = load_artifacts(make_plan(study, store_of(study)).trials[0], str(artifacts_folder(study)), str(tmp_path / "scratch")).data
    spec = next(spec for spec in make_plan(study, store_of(study)).trials if spec.arm == "alpha0" and spec.schedule.optimizer == "keep")
    alone = run_trial(spec, TrialArtifacts(data))
    (row,) = rows[rows["trial_key"] == spec.key].to_dict("records")
    assert {name: row[f"test_{name}"] for name in alone.test} == dict(alone.test)
