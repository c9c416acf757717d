"""A spot node is taken: first told to Ray, then gone. Its trial goes on elsewhere at the epoch boundary, and that is no failure of it."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import ray
from ray.core.generated import autoscaler_pb2
from rich.console import Console

from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.study import StudyConfig
from llmkt_ray.sweep import tuner
from llmkt_ray.sweep.autoscaling import _gcs
from llmkt_ray.sweep.run import run_study
from tests.clusters import Head, kill_tree
from tests.connection import connected
from tests.faults.noting import notes, noting
from tests.tiny import tiny_study

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
QUIET = Console(file=io.StringIO())
EPOCHS = 250
"""Of some 30 ms each: a trial outlasts the time between a node's notice and its end."""
NOTICE_S = 1.5
"""A cloud gives half a minute to two."""


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """A head of one CPU, and a connection to it."""
    with connected(Head(tmp_path / "home", num_cpus=1)) as head:
        yield head


def long_study(root: Path) -> StudyConfig:
    model = {"name": "BPR", "epochs": EPOCHS, "batch_size": 256, "hyperparameters": {"embedding_size": 8}}
    return tiny_study(root, models=[model], training={"evaluate_every": 50}, controls=["alpha0"], evaluation={"references": []})


def numbers(study: StudyConfig) -> pd.DataFrame:
    return Ledger(study_folder(study)).trials().drop(columns=[*MEASUREMENT_COLUMNS, "study_key"])


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.05)


def alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


class Taken(threading.Thread):
    """Takes the second node in the middle of the trial that it runs: notice, the deadline, SIGKILL for all of its processes."""

    def __init__(self, study: StudyConfig, node: int, node_id: str) -> None:
        super().__init__(daemon=True)
        self._folder, self._node, self._node_id = Path(study_folder(study)), node, node_id
        self.trial, self.process, self.at_notice, self.at_end = "", 0, 0, 0

    def run(self) -> None:
        until(self._is_in_the_middle)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int((time.time() + NOTICE_S) * 1000)
        accepted, why = _gcs().drain_node(self._node_id, reason, "the cloud wants it back", deadline_ms)
        assert accepted, why
        self.at_notice = self._epoch()
        time.sleep(NOTICE_S + 0.5)
        self.at_end = self._epoch()
        kill_tree(psutil.Process(self._node))

    def _is_in_the_middle(self) -> bool:
        last = {key: (pid, epoch) for key, pid, epoch in notes(self._folder)}
        below = {child.pid for child in psutil.Process(self._node).children(recursive=True)}
        for key, (pid, epoch) in last.items():
            if pid in below and 3 <= epoch <= 20:
                self.trial, self.process = key, pid
                return True
        return False

    def _epoch(self) -> int:
        return max(epoch for key, _, epoch in notes(self._folder) if key == self.trial)


def test_a_trial_whose_node_is_taken_in_order_goes_on_elsewhere_and_that_is_no_failure(head, tmp_path, monkeypatch):
    """No loss is allowed at all: what Ray tells to be a preemption is not counted as one, however often it happens."""
    monkeypatch.setattr(tuner, "MAX_FAILURES", 0)
    plain, study = long_study(tmp_path / "plain"), long_study(tmp_path / "taken")
    run_study(plain, executor="loop", console=QUIET)
    before = alive()
    node = head.add_node(num_cpus=1)
    until(lambda: len(alive() - before) == 1)
    thief = Taken(study, node.pid, (alive() - before).pop())
    thief.start()
    summary = run_study(study, console=QUIET, run_trial=noting)
    thief.join()

    assert (summary.ran, summary.failed) == (3, 0)
    until(lambda: alive() == before)  # its death is noticed within the health check's time
    assert thief.at_end > thief.at_notice, "a node that is to go works on until it goes"
    of_trial = [(pid, epoch) for key, pid, epoch in notes(Path(study_folder(study))) if key == thief.trial]
    processes = list(dict.fromkeys(pid for pid, _ in of_trial))
    assert (processes[0], len(processes)) == (thief.process, 2), "another process finished it"
    epochs = [epoch for _, epoch in of_trial]
    assert epochs == sorted(set(epochs)), f"an epoch was trained twice: {epochs}"
    assert EPOCHS - 1 <= len(epochs) <= EPOCHS, "one may have been lost between its checkpoint and its note"
    pd.testing.assert_frame_equal(numbers(study), numbers(plain), check_exact=True)
    log = [json.loads(line) for path in Path(study_folder(study), "logs").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert [line["trial"] for line in log if line["event"] == "trial_interrupted"] == [thief.trial]
