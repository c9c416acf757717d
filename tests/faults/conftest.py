import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml

from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from tests.clusters import Head
from tests.tiny import study_text

EPOCHS = 300


class Study:
    """A study of ten trials of about a second each, run by the real command in a process of its own.

    Args:
        root: a folder of its own.
        epochs: of a trial, some 3 ms each.
        changes: sections of the study file that are replaced.
    """

    def __init__(self, root: Path, epochs: int = EPOCHS, **changes: Any) -> None:
        root.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_load(study_text(root))
        content["models"][0] |= {"epochs": epochs}
        content |= {"training": {"evaluate_every": 20}, "seeds": 2} | changes
        self.file, self.folder = root / "study.yaml", root / "results" / "tiny"
        self.file.write_text(yaml.safe_dump(content))
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
        self.options: tuple[str, ...] = ("--workers", "2")

    def on(self, head: Head) -> "Study":
        """Has the runs to come join a cluster."""
        self.environment = head.environment(head.token) | {"PYTHONPATH": os.getcwd()}
        self.options = ("--address", head.gcs_address)
        return self

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "llmkt_ray.cli", "run", str(self.file), *self.options, *options]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment, cwd=self.file.parent
        )

    def run(self, *options: str) -> int:
        process = self.start(*options)
        out, err = process.communicate(timeout=240)
        self.said = out + err
        return process.returncode

    def rows_on_disk(self) -> dict[str, int]:
        folder = self.folder / "ledger" / "trials"
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.parquet")} if folder.exists() else {}

    def numbers(self) -> pd.DataFrame:
        return Ledger(self.folder).trials().drop(columns=[*MEASUREMENT_COLUMNS, "study_key"])

    def finish(self, before: dict[str, int], expected: pd.DataFrame) -> None:
        """Runs again; fails unless the rows that were there are as they were, and all are those expected, bit for bit."""
        assert self.run() == 0, self.said
        after = self.rows_on_disk()
        assert {name: after[name] for name in before} == before, "a finished trial was run again"
        pd.testing.assert_frame_equal(self.numbers(), expected, check_exact=True)
        assert not list((self.folder / "checkpoints").glob("*")), "a checkpoint was left behind"


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 180) -> None:
    """Returns when the condition holds; fails if the process ends before, or never."""
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        assert process.poll() is None, f"the run ended too early: {process.communicate()}"
        time.sleep(0.05)
    pytest.fail("the moment to strike never came")


def trial_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Returns the Ray workers below a driver that are running a trial now."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if is_trial(child):
                found.append(child)
        except psutil.Error:
            continue
    return found


def is_trial(process: psutil.Process) -> bool:
    """Says whether a process is a Ray worker that is running a trial now."""
    return "ImplicitFunc" in " ".join(process.cmdline())


def gone(processes: list[psutil.Process], seconds: float = 60) -> bool:
    """Says whether all these processes end within the time."""
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory) -> pd.DataFrame:
    """The rows of a run that nothing happened to."""
    study = Study(tmp_path_factory.mktemp("uninterrupted"))
    assert study.run("--executor", "loop") == 0, study.said
    rows = study.numbers()
    assert len(rows) == 11
    return rows


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path)
