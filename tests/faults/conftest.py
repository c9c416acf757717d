import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import psutil
import pytest
import yaml
from rich.console import Console

from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.study_file import load_study
from llmkt_ray.sweep.run import run_study
from tests.clusters import Head
from tests.tiny import study_text

T = TypeVar("T")
EPOCHS = 100


class Study:
    """A study of five trials and a reference, run by the real command in a process of its own.

    Args:
        root: a folder of its own.
        epochs: of a trial, some milliseconds each, and at least `PACE_S` in a run that is to be struck.
        changes: sections of the study file that are replaced.
    """

    def __init__(self, root: Path, epochs: int = EPOCHS, **changes: Any) -> None:
        root.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_load(study_text(root))
        content["models"][0] |= {"epochs": epochs}
        content |= {"training": {"evaluate_every": 20}} | changes
        self.file, self.folder = root / "study.yaml", root / "results" / "tiny"
        self.file.write_text(yaml.safe_dump(content))
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
        self.options: tuple[str, ...] = ("--workers", "2")

    def on(self, head: Head) -> "Study":
        """Has the runs to come join a cluster; a driver whose head is dead waits ten seconds for it, not Ray's minute."""
        self.environment = head.environment(head.token) | {"PYTHONPATH": os.getcwd(), "RAY_ADDRESS": head.gcs_address}
        self.environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "10"
        self.options = ()
        return self

    def start(self, *options: str) -> subprocess.Popen[str]:
        return self._start("llmkt_ray.cli", "run", str(self.file), *self.options, *options)

    def start_paced(self, *options: str) -> subprocess.Popen[str]:
        """Starts a run that lasts long enough to be struck in its middle, see `tests.faults.paced`."""
        return self._start("tests.faults.paced", "run", str(self.file), *self.options, *options)

    def start_noting(self, executor: str = "ray") -> subprocess.Popen[str]:
        """Starts a run that notes every epoch and leaves a checkpoint after each, see `tests.faults.noting`."""
        return self._start("tests.faults.noting", str(self.file), executor)

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment, cwd=self.file.parent
        )

    def run(self, *options: str) -> int:
        process = self.start(*options)
        out, err = process.communicate(timeout=450)
        self.said = out + err
        return process.returncode

    def rows_on_disk(self) -> dict[str, int]:
        folder = self.folder / "ledger" / "trials"
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.parquet")} if folder.exists() else {}

    def numbers(self) -> pd.DataFrame:
        return Ledger(self.folder).trials().drop(columns=[*MEASUREMENT_COLUMNS, "study_key"])

    def run_here(self) -> None:
        """Runs what is missing in this process, one trial after the other."""
        run_study(load_study(self.file), executor="loop", console=Console(file=io.StringIO()))

    def finish(self, before: dict[str, int], expected: pd.DataFrame, by_command: bool = False) -> None:
        """Runs again; fails unless the rows that were there are as they were, and all are those expected, bit for bit.

        Args:
            before: the rows that were there.
            expected: the numbers of all rows.
            by_command: whether `llmkt run` does it, on Ray, or this process, which takes a quarter of the time.
        """
        if by_command:
            assert self.run() == 0, self.said
        else:
            self.run_here()
        after = self.rows_on_disk()
        assert {name: after[name] for name in before} == before, "a finished trial was run again"
        rows = self.numbers()
        failed = rows[rows["status"] == "failed"]
        assert failed.empty, failed[["trial_key", "arm", "error_kind", "error_message", "error_traceback"]].to_dict("records")
        pd.testing.assert_frame_equal(rows, expected, check_exact=True)
        assert not list((self.folder / "checkpoints").glob("*")), "a checkpoint was left behind"


def wait_for(condition: Callable[[], T], process: subprocess.Popen[str], seconds: float = 400) -> T:
    """Returns what the condition says as soon as that is true; fails if the process ends before, or never."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, f"the run ended too early: {process.communicate()}"
        assert time.monotonic() < end, "the moment to strike never came"
        time.sleep(0.05)
    return found


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
    study.run_here()
    rows = study.numbers()
    assert len(rows) == 6
    return rows


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path)
