"""A run that goes on, watched from outside: `llmkt status` in another terminal, Ray's dashboard with its token, workers' logs."""

import json
import os
import re
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from llmkt_ray.results.ledger import Ledger
from tests.tiny import study_text
from tests.waiting import wait_until

pytestmark = pytest.mark.ray


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    content = yaml.safe_load(study_text(tmp_path))
    content["models"][0] |= {"epochs": 400}
    content["training"] = {"evaluate_every": 100}
    path.write_text(yaml.safe_dump(content))
    return path


RUNNING = re.compile(r"^  toy BPR (.+) seed 0: .* so far \(trial (\w+)\)$", re.MULTILINE)
"""The line of a trial that runs now."""


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    kept |= {"OMP_NUM_THREADS": "1", "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300"}  # a busy machine needs longer than Ray's minute
    return kept | {"PYTHONPATH": os.getcwd(), "HOME": str(home)} | more


def status(study: Path, home: Path) -> str:
    command = [sys.executable, "-m", "llmkt_ray.cli", "status", str(study)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(home), timeout=120, check=True).stdout


def code_of(url: str, token: str | None) -> int:
    request = urllib.request.Request(f"{url}/api/jobs/", headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.timeout(1200)
def test_a_running_study_is_watched_from_another_terminal(study, tmp_path):
    token = secrets.token_hex(32)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(token)
    # Paced: looking takes seconds, and trials must run meanwhile however fast the machine is.
    command = [sys.executable, "-m", "tests.faults.paced", "run", str(study), "--workers", "2", "--dashboard"]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment(tmp_path), cwd=tmp_path)
        folder = tmp_path / "results" / "tiny"

        def a_trial_runs() -> bool:
            assert process.poll() is None, (tmp_path / "said").read_text()
            progress = folder / "progress.json"
            return progress.exists() and bool(json.loads(progress.read_text())["running"])

        try:
            wait_until(a_trial_runs)
            for _ in range(20):  # a trial may end while the other terminal starts: looked at again, as a person would
                seen = status(study, tmp_path)
                if RUNNING.search(seen):
                    break
            link = re.search(r"dashboard: (http://127\.0\.0\.1:\d+)", seen)
            assert link, seen
            codes = {name: code_of(link[1], given) for name, given in (("right", token), ("wrong", "f" * 64), ("none", None))}
            assert process.wait(timeout=400) == 0, (tmp_path / "said").read_text()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=60)
    assert re.search(rf"running: process {process.pid} on ", seen)
    assert re.search(r"stage: trials, \d of 6 done", seen), seen
    keys = set(Ledger(folder).trials()["trial_key"])
    running = RUNNING.findall(seen)
    assert running, seen
    assert {key for _, key in running} <= keys
    assert codes == {"right": 200, "wrong": 403, "none": 401}
    assert f"Ray's dashboard: {link[1]}" in (tmp_path / "said").read_text()
    assert token not in (tmp_path / "said").read_text() + seen
    after = status(study, tmp_path)
    assert "running: nobody" in after
    assert "stage:" not in after


def test_a_dashboard_without_a_token_to_sign_in_with_is_refused(study, tmp_path):
    command = [sys.executable, "-m", "llmkt_ray.cli", "run", str(study), "--dashboard"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), timeout=120, check=False)
    assert done.returncode == 2
    assert "ray get-auth-token --generate" in done.stderr


def test_workers_log_lines_of_json_with_the_trial(study, tmp_path):
    code = (
        "import sys, ray; from llmkt_ray.api import Study; from llmkt_ray.sweep.cluster import cluster\n"
        "study = Study.from_yaml(sys.argv[1])\n"
        "with cluster(num_cpus=2):\n"
        "    study.run()\n"
        "    print('SESSION', ray._private.worker.global_worker.node.get_session_dir_path())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(study)], capture_output=True, text=True, env=environment(tmp_path), timeout=240, check=True
    )
    session = Path(done.stdout.split("SESSION ")[1].strip())
    found = [json.loads(line) for path in session.glob("logs/worker-*.err") for line in path.read_text().splitlines() if line[:1] == "{"]
    keys = set(Ledger(tmp_path / "results" / "tiny").trials()["trial_key"])
    for event in ("trial begins", "trial ends"):
        assert {line["trial"] for line in found if line["event"] == event} == keys
    epochs = [line for line in found if line["event"] == "epoch"]
    assert {line["trial"] for line in epochs} < keys
    assert {"loss_model", "epoch", "name", "pid"} <= set(epochs[0])
