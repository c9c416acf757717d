"""The Slurm script as it is, with Ray's real nodes on this machine; `srun`, `scontrol` and `hostname` are stand-ins of a few lines."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[3] / "cluster" / "slurm.sh"
STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"',
    "scontrol": "printf 'node1\\nnode2\\n'",
    "hostname": "echo 127.0.0.1",
}
ENTRY_POINT = """
import os, sys, time, ray
ray.init(log_to_driver=False)
while len([node for node in ray.nodes() if node["Alive"]]) < 2:
    time.sleep(0.2)
print("SWEEP", sys.argv[1], "on 2 nodes, authentication by", os.environ["RAY_AUTH_MODE"], flush=True)
print("OPTIONS", *sys.argv[2:], "HOME", os.environ["LLMKT_HOME"], flush=True)
if "wait" in sys.argv[1]:
    time.sleep(600)
sys.exit("fails" in sys.argv[1])
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    for folder in ("bin", "home", "project/sweeps"):
        (tmp_path / folder).mkdir(parents=True)
    for name, body in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "project" / "sweeps" / "run.py").write_text(ENTRY_POINT)
    for study in ("works", "fails", "wait"):
        (tmp_path / "project" / f"{study}.yaml").write_text("name: x\n")
    yield {
        "HOME": str(tmp_path / "home"),
        "USER": "somebody",
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_SUBMIT_DIR": str(tmp_path / "project"),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
    }
    shutil.rmtree(f"/tmp/llmkt-{os.getpid()}", ignore_errors=True)  # Ray's logs, which the script leaves on the nodes


def left_over(environment: dict[str, str]) -> list[str]:
    """Command lines of processes that still belong to the job."""
    mine = f"llmkt-{environment['SLURM_JOB_ID']}"
    return [
        " ".join(process.info["cmdline"])[:200]
        for process in psutil.process_iter(["cmdline"])
        if any(mine in part for part in process.info["cmdline"] or [])
    ]


def assert_torn_down(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while left_over(environment) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left_over(environment) == []
    assert list(Path(environment["HOME"]).glob(".llmkt-slurm-*")) == []


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("study", "code"), [("works.yaml", 0), ("fails.yaml", 1)])
def test_the_sweep_runs_on_all_nodes_and_its_outcome_is_the_job_s(environment: dict[str, str], study: str, code: int) -> None:
    done = subprocess.run([SCRIPT, study, "--retry-failed"], env=environment, capture_output=True, text=True, timeout=500)
    assert f"SWEEP {study} on 2 nodes, authentication by token" in done.stdout, done.stdout + done.stderr
    assert f"OPTIONS --retry-failed HOME {environment['HOME']}/llmkt" in done.stdout
    assert done.returncode == code
    assert_torn_down(environment)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_cancelled_job_leaves_nothing_behind(environment: dict[str, str], tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen([SCRIPT, "wait.yaml"], env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 450
        while "SWEEP wait.yaml" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            assert job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        assert "SWEEP wait.yaml" in (tmp_path / "log").read_text()  # the log is written while the sweep runs
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=120) == 143
    assert_torn_down(environment)


@pytest.mark.parametrize(("arguments", "words"), [([], "usage: sbatch"), (["none.yaml"], "there is no study file 'none.yaml'")])
def test_a_wrong_call_says_what_is_wrong_and_starts_nothing(environment: dict[str, str], arguments: list[str], words: str) -> None:
    done = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert words in done.stderr
    assert left_over(environment) == []


def test_outside_slurm_it_says_how_to_start_it(environment: dict[str, str]) -> None:
    del environment["SLURM_JOB_ID"]
    done = subprocess.run([SCRIPT, "works.yaml"], env=environment, capture_output=True, text=True, timeout=30)
    assert "start this with sbatch" in done.stderr
