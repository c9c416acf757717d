"""What cannot be survived is said once and leaves a folder that a later run goes on from."""

import io
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import ray
from ray.air.execution._internal import event_manager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.trainable.function_trainable import get_session
from rich.console import Console

from llmkt_ray.errors import StorageError
from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep.cluster import cluster
from llmkt_ray.sweep.run import run_study
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from tests.tiny import tiny_study

pytestmark = pytest.mark.ray


def deadly(spec: TrialSpec, artifacts: TrialArtifacts, **_: object) -> TrialResult:
    """A trial that takes its process with it, as the kernel does when memory runs out."""
    if spec.arm == "shuffled":
        os._exit(9)
    return good(spec, artifacts)


def good(spec: TrialSpec, artifacts: TrialArtifacts, **_: object) -> TrialResult:
    return TrialResult(spec=spec, status="done", valid=dict.fromkeys(spec.metrics, 0.5), test=dict.fromkeys(spec.metrics, 0.5))


def deadly_after(spec: TrialSpec, artifacts: TrialArtifacts, *, checkpoint_dir: Path, **_: object) -> TrialResult:
    """A good trial; the first worker that is to be reused for another dies between the two, the very first time."""
    struck = checkpoint_dir.parent / "struck"

    def die(*_: object, **__: object) -> None:
        struck.touch()
        os._exit(9)

    if not struck.exists():
        type(get_session()).reset = die
    return good(spec, artifacts)


def busy_after(spec: TrialSpec, artifacts: TrialArtifacts, *, checkpoint_dir: Path, **_: object) -> TrialResult:
    """A good trial; the first worker that is to be reused for another is busy still, the very first time."""
    struck = checkpoint_dir.parent / "struck"

    def stay_busy(session: Any, timeout: float | None = None) -> None:
        struck.touch()
        session.training_thread = threading.current_thread()  # one that lives

    if not struck.exists():
        type(get_session()).finish = stay_busy
    return good(spec, artifacts)


def full_disk(spec: TrialSpec, artifacts: TrialArtifacts, **_: object) -> TrialResult:
    if spec.arm == "treated":
        raise StorageError("no space left while writing a checkpoint; free some space")
    return good(spec, artifacts)


def told_of_memory(reference: ray.ObjectRef) -> object:
    try:
        return ray.get(reference)
    except RayActorError as error:
        raise OutOfMemoryError("1 worker(s) were killed due to the node running low on memory") from error


def run(study, executor="ray", **settings):
    return run_study(study, executor=executor, console=Console(file=io.StringIO()), **settings)


@pytest.fixture(scope="module")
def two_workers():
    with cluster(num_cpus=2):
        yield


@pytest.mark.parametrize("run_trial", [deadly_after, busy_after])
def test_a_worker_that_cannot_be_reused_costs_no_trial(tmp_path, run_trial):
    with cluster(num_cpus=1):
        summary = run(tiny_study(tmp_path), run_trial=run_trial)
    assert next(tmp_path.rglob("struck"), None), "no worker was reused"
    assert (summary.done, summary.failed) == (6, 0)
    (log,) = Path(summary.folder, "logs").iterdir()
    assert log.read_text().count('"trial_interrupted"') == 1, "one loss is counted once"


@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize("by", ["the kernel", "Ray's memory monitor"])
def test_a_trial_that_always_takes_its_worker_down_ends_as_a_row(tmp_path, monkeypatch, by):
    """What a driver is told of a worker that the monitor killed is an `OutOfMemoryError`, told here of one that is really gone."""
    if by != "the kernel":
        monkeypatch.setattr(event_manager, "ray", SimpleNamespace(**vars(ray) | {"get": told_of_memory}))
    study = tiny_study(tmp_path)
    summary = run(study, run_trial=deadly)
    assert (summary.done, summary.failed) == (5, 1)
    rows = Ledger(summary.folder).trials()
    (lost,) = rows[rows["status"] == "failed"].to_dict("records")
    assert lost["arm"] == "shuffled"
    assert lost["error_kind"] == "WorkerLost"
    assert "lost 4 times" in lost["error_message"]


@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize("executor", ["loop", "ray"])
def test_a_full_disk_ends_the_sweep_and_a_later_run_goes_on(tmp_path, executor):
    study = tiny_study(tmp_path)
    with pytest.raises(StorageError, match="no space left"):
        run(study, executor, run_trial=full_disk)
    rows = Ledger(study_folder(study)).trials()
    assert "treated" not in set(rows["arm"]), "a full disk is not a trial's failure"
    assert set(rows["status"]) <= {"done"}
    summary = run(study, executor, run_trial=good)
    assert (summary.done, summary.failed) == (6, 0)


def test_a_really_full_disk_leaves_no_half_written_row(tmp_path):
    """The file size limit stands in for a full disk: the kernel refuses to write in the same place."""
    import resource

    study = tiny_study(tmp_path)
    run(study, "loop", limit=2, run_trial=good)
    before = Ledger(study_folder(study)).trials()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"writing .* failed|no space left"):
            run(study, "loop", run_trial=good)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    pd.testing.assert_frame_equal(Ledger(study_folder(study)).trials(), before)
    assert not list((tmp_path / "results").rglob("*.partial"))
    assert run(study, "loop", run_trial=good).done == 6
