"""What the feed of trials does where Tune gives one up: it is run again, a bounded number of times, and counted once a loss."""

import io
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from rich.console import Console

from llmkt_ray.errors import StorageError
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep import tuner
from llmkt_ray.sweep.execute import Workplace, load_artifacts
from llmkt_ray.sweep.progress import Progress
from llmkt_ray.sweep.tuner import MAX_FAILURES, _Feed, _Queue, _Watcher
from llmkt_ray.training.spec import TrialSpec
from llmkt_ray.training.trial import run_trial

SPEC = TrialSpec(
    study_seed=1,
    dataset="toy",
    split_key="s",
    model="BPR",
    epochs=4,
    batch_size=64,
    learning_rate=0.01,
    arm="baseline",
    metrics=("NDCG@10",),
    select_on="NDCG@10",
    seed_index=0,
)
FINISHED = tune.search.Searcher.FINISHED


@pytest.fixture
def progress() -> Progress:
    return Progress(Console(file=io.StringIO()))


def feed_of(specs: Sequence[TrialSpec], folder: Path, progress: Progress) -> _Feed:
    """A feed as a Tuner begins with it."""
    place = Workplace(
        study_key="k",
        folder=str(folder),
        artifacts="",
        scratch=str(folder),
        device="cpu",
        threads=1,
        run_trial=run_trial,
        load=load_artifacts,
    )
    queue = _Queue(iter([specs]))
    assert queue.refill()
    return _Feed(queue, place, progress, None)


def test_a_trial_is_given_out_again_until_it_was_lost_too_often(tmp_path: Path, progress: Progress) -> None:
    feed = feed_of([SPEC], tmp_path, progress)
    for attempt in range(MAX_FAILURES + 1):
        assert feed.suggest(str(attempt))["spec"] == SPEC.model_dump_json()
        assert feed.suggest("more") is None, "it runs: nothing else is there, and the Tuner is not finished"
        for _ in range(2):  # Tune may say it twice
            feed.on_trial_complete(str(attempt), error=True)
    assert feed.suggest("last") == FINISHED
    (row,) = Ledger(tmp_path).trials().to_dict("records")
    assert (row["status"], row["error_kind"]) == ("failed", "WorkerLost")
    assert f"lost {MAX_FAILURES + 1} times" in row["error_message"]


def test_a_trial_that_gets_further_each_time_is_never_given_up(tmp_path: Path, progress: Progress) -> None:
    """A trial of hours on nodes that are taken every quarter of an hour is not one that kills its workers."""
    feed = feed_of([SPEC], tmp_path, progress)
    checkpoint = feed._place.checkpoints / f"{SPEC.key}.pt"
    checkpoint.parent.mkdir()
    for attempt in range(3 * MAX_FAILURES):
        assert isinstance(feed.suggest(f"further {attempt}"), dict)
        checkpoint.write_bytes(b"of a later epoch")
        os.utime(checkpoint, ns=(attempt + 1, attempt + 1))
        feed.on_trial_complete(f"further {attempt}", error=True)
    assert Ledger(tmp_path).trials().empty
    for attempt in range(MAX_FAILURES):
        assert isinstance(feed.suggest(f"stuck {attempt}"), dict)
        feed.on_trial_complete(f"stuck {attempt}", error=True)
    assert feed.suggest("last") == FINISHED
    (row,) = Ledger(tmp_path).trials().to_dict("records")
    assert (row["status"], row["error_kind"]) == ("failed", "WorkerLost")
    assert f"lost {MAX_FAILURES + 1} times before it got any further" in row["error_message"]


def test_a_trial_whose_worker_breaks_around_it_keeps_the_reason(
    tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no row can be written in the worker, the row says what it raised, not that a worker was lost."""
    feed = feed_of([SPEC], tmp_path, progress)
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(tuner.tune, "report", reports.append)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("the machine is on fire")

    monkeypatch.setattr(tuner, "execute", broken)
    for attempt in range(MAX_FAILURES + 1):
        config = feed.suggest(str(attempt))
        assert isinstance(config, dict)
        tuner._train(config, feed._place)
        feed.on_trial_complete(str(attempt), reports[-1])
    assert feed.suggest("last") == FINISHED
    (row,) = Ledger(tmp_path).trials().to_dict("records")
    assert (row["status"], row["error_kind"]) == ("failed", "ZeroDivisionError")
    assert row["error_message"] == f"the machine is on fire (outside of training; tried {MAX_FAILURES + 1} times)"
    assert "broken" in row["error_traceback"]


def test_a_trial_that_tune_gives_up_without_a_word_is_given_out_again(tmp_path: Path, progress: Progress) -> None:
    feed = feed_of([SPEC], tmp_path, progress)
    watcher = _Watcher(progress, feed)
    feed.suggest("a")
    watcher.on_step_end(1, [SimpleNamespace(trial_id="a", status="RUNNING")])
    assert feed.suggest("b") is None
    for step in (2, 3):
        watcher.on_step_end(step, [SimpleNamespace(trial_id="a", status="ERROR")])
    assert feed.suggest("b")["spec"] == SPEC.model_dump_json()
    watcher.on_step_end(4, [SimpleNamespace(trial_id="a", status="ERROR"), SimpleNamespace(trial_id="b", status="RUNNING")])
    feed.on_trial_complete("b", {"status": "done"})
    assert feed.suggest("c") == FINISHED


def test_a_row_of_a_lost_trial_that_cannot_be_written_ends_the_sweep(tmp_path: Path, progress: Progress) -> None:
    """Raised inside Tune it would come out as Tune's own error, with a traceback."""
    (tmp_path / "ledger").write_text("no folder")
    feed = feed_of([SPEC], tmp_path, progress)
    for attempt in range(MAX_FAILURES + 1):
        feed.suggest(str(attempt))
        feed.on_trial_complete(str(attempt), error=True)
    assert isinstance(feed.problem, StorageError)
    assert feed.suggest("last") == FINISHED


def test_a_folder_that_is_another_run_s_by_now_ends_the_sweep(tmp_path: Path, progress: Progress) -> None:
    feed = feed_of([SPEC], tmp_path, progress)
    progress.hold.lost = StorageError("this study is being run already")
    assert feed.suggest("a") == FINISHED
    assert feed.problem is progress.hold.lost


@pytest.mark.parametrize(("folder", "at_once"), [("/shared/results", 1), ("mock://bucket/results", 2)])
def test_trials_that_share_a_phase_1_wait_for_it_only_where_the_driver_can_see_it(
    tmp_path: Path, progress: Progress, folder: str, at_once: int
) -> None:
    specs = [SPEC, SPEC.model_copy(update={"arm": "alpha0"})]
    assert specs[0].phase1_key == specs[1].phase1_key
    feed = feed_of(specs, tmp_path, progress)
    feed = _Feed(feed._queue, replace(feed._place, folder=folder), progress, None)
    given = [feed.suggest(str(number)) for number in range(2)]
    assert len([each for each in given if each]) == at_once


@pytest.mark.parametrize(("device", "is_broken", "ends"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)])
def test_a_process_whose_cuda_context_is_lost_ends_after_the_failed_trial_s_row(
    tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch, device: str, is_broken: bool, ends: bool
) -> None:
    """It would fail every trial that waits, each in milliseconds. A trial that had too little memory breaks nothing."""
    reports: list[dict[str, Any]] = []

    def synchronize() -> None:
        if is_broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def ended(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(tuner.tune, "report", reports.append)
    monkeypatch.setattr(tuner.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(tuner.torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(tuner.os, "_exit", ended)
    feed = feed_of([SPEC], tmp_path, progress)
    config = feed.suggest("a")
    assert isinstance(config, dict)

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error")

    place = replace(feed._place, device=device, load=lambda *_: None, run_trial=failing)
    with pytest.raises(SystemExit) if ends else nullcontext():
        tuner._train(config, place)
    assert [each["status"] for each in reports] == ([] if ends else ["failed"])
    assert Ledger(tmp_path).has(SPEC.key)
    feed.on_trial_complete("a", None if ends else reports[-1], error=ends)
    assert feed.suggest("b") == FINISHED
