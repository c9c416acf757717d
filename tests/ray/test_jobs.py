"""A study as a job on a real local head with token authentication: submitted, attached to, fetched; wrong tokens refused."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from llmkt_ray.errors import StorageError, StudyError
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study_file import load_study
from llmkt_ray.sweep.jobs import Jobs, pack, stored_for_job, unpack
from tests.tiny import study_text

pytestmark = pytest.mark.ray


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Head:
    """A Ray head of its own, known by its dashboard's address and its token."""

    def __init__(self, home: Path) -> None:
        self.token, self.port, self.home = secrets.token_hex(32), free_port(), home
        self.address = f"http://127.0.0.1:{self.port}"
        ray = Path(sys.executable).with_name("ray")
        command = [ray, "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}", "--include-dashboard=true"]
        command += [
            "--dashboard-agent-listen-port=0",  # the default ports are one other Ray's on this machine
            f"--ray-client-server-port={free_port()}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.port}",
            "--disable-usage-stats",
            f"--temp-dir=/tmp/llmkt-{os.getpid()}",
        ]
        self.process = subprocess.Popen(command, env=self.environment(self.token), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def environment(self, token: str | None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"  # the job's python is the one of this environment
        kept |= {"OMP_NUM_THREADS": "1", "LLMKT_HOME": str(self.home), "RAY_AUTH_MODE": "token" if token else "disabled"}
        return kept | ({"RAY_AUTH_TOKEN": token} if token else {})

    def wait(self) -> None:
        for _ in range(240):
            assert self.process.poll() is None, "the head did not start"
            try:
                request = urllib.request.Request(f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"})
                with urllib.request.urlopen(request, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        pytest.fail("the dashboard did not answer")

    def end(self) -> None:
        family = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        shutil.rmtree(f"/tmp/llmkt-{os.getpid()}", ignore_errors=True)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    head = Head(tmp_path_factory.mktemp("home"))
    try:
        head.wait()
        yield head
    finally:
        head.end()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("job")
    path = root / "study.yaml"
    path.write_text(study_text(root).replace(f"storage: {root}/results", "storage: results"))
    return path


def llmkt(head: Head, *arguments: object, token: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmkt_ray.cli", *map(str, arguments), "--address", head.address]
    environment = head.environment(head.token if token is None else token or None) | {"PYTHONPATH": os.getcwd()}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_a_study_runs_as_a_job_and_comes_home(head, study, tmp_path):
    key = load_study(study).key
    first = llmkt(head, "submit", study)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"submitted tiny-{key}-1" in first.stdout
    assert "6 trials run now, 6 done" in first.stdout
    assert f"tiny-{key}-1: SUCCEEDED" in first.stdout
    assert (head.home / "results" / "tiny" / "report.html").exists(), "a relative storage outlives the job"

    second = llmkt(head, "submit", study)
    assert f"submitted tiny-{key}-2" in second.stdout
    assert "nothing was missing" in second.stdout

    shown = llmkt(head, "status", study).stdout
    assert f"tiny-{key}-1: SUCCEEDED" in shown
    assert f"tiny-{key}-2: SUCCEEDED" in shown
    assert "no job of this study is running" in llmkt(head, "stop", study).stdout

    fetched = llmkt(head, "fetch", study, "--to", tmp_path / "here")
    assert fetched.returncode == 0, fetched.stderr
    assert (tmp_path / "here" / "tiny" / "report.html").read_bytes() == (head.home / "results" / "tiny" / "report.html").read_bytes()
    assert len(Ledger(tmp_path / "here" / "tiny").trials()) == 6


@pytest.mark.parametrize("token", ["", "f" * 64])
def test_without_the_right_token_nothing_is_done(head, study, token):
    refused = llmkt(head, "submit", study, token=token)
    assert refused.returncode == 2
    assert "refuses the token" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_no_cluster_at_the_address(study, monkeypatch):
    from llmkt_ray.errors import ResourceError

    with pytest.raises(ResourceError, match=r"cannot be used: .*is it running"):
        Jobs(study, f"http://127.0.0.1:{free_port()}").attempts()


def test_relative_paths_do_not_go_to_a_cluster(tmp_path, head, monkeypatch):
    from llmkt_ray.sweep.jobs import _refuse_relative_paths

    path = tmp_path / "study.yaml"
    path.write_text("name: far\ndatasets: [{name: toy, path: data/toy}]\nmodels: [BPR]\n")
    with pytest.raises(StudyError, match="dataset 'toy' has the relative path 'data/toy'"):
        _refuse_relative_paths(load_study(path), path)


def test_packed_results_arrive_whole_or_not_at_all(tmp_path):
    source = tmp_path / "source"
    for name in ("card.json", "ledger/trials/a.parquet", "checkpoints/b.pt", "run.lock"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(os.urandom(1000))
    text = pack(str(source))
    unpack(text, tmp_path / "target")
    arrived = sorted(path.relative_to(tmp_path / "target").as_posix() for path in (tmp_path / "target").rglob("*") if path.is_file())
    assert arrived == ["card.json", "ledger/trials/a.parquet"]
    for damaged in (text[: len(text) // 2], "no base64 at all!"):
        with pytest.raises(StorageError, match="arrived damaged"):
            unpack(damaged, tmp_path / "other")


def test_a_relative_storage_moves_and_an_absolute_one_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMKT_HOME", str(tmp_path))
    path = tmp_path / "study.yaml"
    path.write_text(study_text(tmp_path))
    absolute = load_study(path)
    assert stored_for_job(absolute) == absolute
    relative = absolute.model_copy(update={"storage": "results"})
    assert stored_for_job(relative).storage == str(tmp_path / "results")
    assert stored_for_job(relative).key == relative.key, "where results lie does not change the study"
