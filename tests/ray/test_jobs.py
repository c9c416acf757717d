"""A study as a job on a real local head with token authentication: submitted, attached to, fetched; wrong tokens refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow.fs as pafs
import pytest
import yaml
from moto import server as moto_server

from llmkt_ray.artifacts import FileStore
from llmkt_ray.errors import StorageError, StudyError
from llmkt_ray.profiles.prompts import PromptTemplate
from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study_file import load_study
from llmkt_ray.sweep.jobs import Job, Jobs, pack, stored_for_job, unpack
from tests.clusters import Head, free_port, kill_tree
from tests.tiny import study_text
from tests.waiting import wait_until

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
AS_WRITTEN = "ray job submit --working-dir . -- python -m sweeps.run sweeps/robustness.yaml"


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
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)


def following(head: Head, study: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llmkt_ray.cli", "submit", str(study), "--address", head.address]
    environment = head.environment(head.token) | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


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


@pytest.mark.timeout(1200)
def test_attached_stopped_and_gone_on_with(head, tmp_path):
    study, content = tmp_path / "long.yaml", yaml.safe_load(study_text(tmp_path))
    content["models"][0] |= {"epochs": 5000}
    content |= {"name": "long", "storage": "results", "training": {"evaluate_every": 500}}
    study.write_text(yaml.safe_dump(content))
    key, folder = load_study(study).key, head.home / "results" / "long"
    assert f"submitted long-{key}-1" in llmkt(head, "submit", study, "--no-follow").stdout
    assert f"running already, attached to long-{key}-1" in llmkt(head, "submit", study, "--no-follow").stdout
    shown = rf"long-{key}-1: RUNNING: .*(of 6 done|: \d of \d in )"
    wait_until(lambda: re.search(shown, llmkt(head, "status", study).stdout))
    wait_until(lambda: len(rows_on_disk(folder)) >= 2)  # stopped at once now: each command takes seconds, in which trials end
    assert f"stopped long-{key}-1" in llmkt(head, "stop", study).stdout
    jobs = attempts(head, study)
    wait_until(lambda: jobs()[-1].ended)
    assert [job.status for job in jobs()] == ["STOPPED"]
    before = rows_on_disk(folder)
    assert 2 <= len(before) < 6, "stopped too late"
    again = llmkt(head, "submit", study)
    assert f"submitted long-{key}-2" in again.stdout
    assert f"{6 - len(before)} trials run now, 6 done and 0 failed in all" in again.stdout
    after = rows_on_disk(folder)
    assert {name: after[name] for name in before} == before, "a finished trial was run again"


@pytest.mark.timeout(1200)
def test_a_node_is_killed_under_a_job_and_the_report_comes_home_all_the_same(head, tmp_path):
    """The demonstration of benchmarks/jobs/two_nodes.py in small."""
    study, content = tmp_path / "nodes.yaml", yaml.safe_load(study_text(tmp_path))
    content["models"][0] |= {"epochs": 2500}
    content |= {"name": "nodes", "storage": "results", "training": {"evaluate_every": 500}, "seeds": 2}
    study.write_text(yaml.safe_dump(content))
    folder = head.home / "results" / "nodes"
    second = head.add_node(num_cpus=2)
    assert "submitted nodes-" in llmkt(head, "submit", study, "--no-follow").stdout
    wait_until(lambda: len(rows_on_disk(folder)) >= 2)
    before = rows_on_disk(folder)
    assert len(before) < 11, "too late"
    kill_tree(psutil.Process(second.pid))
    with following(head, study) as follower:  # attaches
        said = []
        while not said or not said[-1].startswith("Running entrypoint"):
            said.append(follower.stdout.readline())
            assert said[-1], f"the log ended: {said}"
        assert re.search(r"nodes-\w+-1: RUNNING", llmkt(head, "status", study).stdout), "the log was not shown while the job ran"
        said += follower.stdout.readlines()
    assert re.search(r"nodes-\w+-1: SUCCEEDED", said[-1]), said
    assert sum(line.startswith("Running entrypoint") for line in said) == 1, "what was shown is not shown again"
    after = rows_on_disk(folder)
    assert {name: after[name] for name in before} == before, "a finished trial was run again"
    assert llmkt(head, "fetch", study, "--to", tmp_path / "here").returncode == 0
    rows = Ledger(tmp_path / "here" / "nodes").trials()
    assert (len(rows), set(rows["status"])) == (11, {"done"})
    assert (tmp_path / "here" / "nodes" / "report.html").exists()
    log = "".join(path.read_text() for path in (tmp_path / "here" / "nodes" / "logs").glob("*.jsonl"))
    assert '"event": "trial_interrupted"' in log


def rows_on_disk(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "ledger" / "trials").glob("[!.]*.parquet")}


def attempts(head: Head, study: Path):
    """Returns a function that asks for the study's jobs, in a process with the cluster's token."""
    code = "import sys; from pathlib import Path; from llmkt_ray.sweep.jobs import Jobs\n"
    code += "for job in Jobs(Path(sys.argv[1]), sys.argv[2]).attempts(): print(job.id, job.status)"

    def ask() -> list[Job]:
        command = [sys.executable, "-c", code, str(study), head.address]
        environment = head.environment(head.token) | {"PYTHONPATH": os.getcwd()}
        said = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True).stdout
        return [Job(*line.split()) for line in said.splitlines() if line.startswith("long-")]

    return ask


def test_the_command_of_the_documents_works_as_it_is_written(head):
    """The very line, in the repository, with nothing added but that a few trials are enough for a test."""
    assert (
        AS_WRITTEN.replace("ray job submit", "ray job submit --address http://127.0.0.1:8265") in (ROOT / "cluster/README.md").read_text()
    )
    environment = head.environment(head.token) | {"RAY_ADDRESS": head.address, "RAY_API_SERVER_ADDRESS": head.address}
    command = [*AS_WRITTEN.split(), "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    assert re.search(r"[1-4] trials run now, [1-4] done and 0 failed in all", done.stdout), done.stdout[-3000:]
    assert (head.home / "results" / "robustness-smoke" / "report.html").exists()


@pytest.mark.parametrize("token", ["", "f" * 64])
def test_without_the_right_token_nothing_is_done(head, study, token):
    refused = llmkt(head, "submit", study, token=token)
    assert refused.returncode == 2
    assert "refuses the token" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("token", ["right", "wrong", "none"])
def test_a_driver_joins_a_cluster_with_its_token_alone(head, study, tmp_path, token):
    """`llmkt run --address`: not the dashboard, the cluster itself."""
    given = {"right": head.token, "wrong": "f" * 64, "none": None}[token]
    command = [sys.executable, "-m", "llmkt_ray.cli", "run", str(study), "--address", head.gcs_address]
    environment = head.environment(given) | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300, check=False)
    if token == "right":
        assert "6 trials run now, 6 done and 0 failed in all" in done.stdout, done.stdout + done.stderr
    else:
        assert done.returncode == 2
        assert "refuses the token" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list((tmp_path / "results").rglob("*.parquet"))


def test_results_on_an_object_store_are_fetched_from_there(head, tmp_path, monkeypatch):
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("EC2_METADATA_DISABLED", "true")):
            monkeypatch.setenv(f"AWS_{name}", value)
        endpoint = ":".join(map(str, server.get_host_and_port()))
        pafs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True).create_dir("team")
        storage = f"s3://team/results?endpoint_override={endpoint}&scheme=http&region=us-east-1"
        path = tmp_path / "study.yaml"
        path.write_text(study_text(tmp_path).replace(f"storage: {tmp_path}/results", f"storage: {storage}"))
        there = FileStore(study_folder(load_study(path)))
        for name in ("report.html", "ledger/trials/a.parquet", "checkpoints/a.pt"):
            there.write_bytes(name, name.encode())
        assert llmkt(head, "fetch", path, "--to", tmp_path / "here").returncode == 0
    finally:
        server.stop()
    here = tmp_path / "here" / "tiny"
    arrived = sorted(each.relative_to(here).as_posix() for each in here.rglob("*") if each.is_file())
    assert arrived == ["ledger/trials/a.parquet", "report.html", "run.lock"], "beside them the lock that kept runs out meanwhile"


def test_no_cluster_at_the_address(study, monkeypatch):
    from llmkt_ray.errors import ResourceError

    with pytest.raises(ResourceError, match=r"cannot be used: .*is it running"):
        Jobs(study, f"http://127.0.0.1:{free_port()}").attempts()


def test_what_the_cluster_would_not_find_is_refused(tmp_path, monkeypatch):
    from llmkt_ray.sweep.jobs import _refuse_what_stays_here

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "llama").mkdir(parents=True)
    path = tmp_path / "study.yaml"
    path.write_text("""
name: far
datasets: [{name: toy, path: data/toy}]
models: [{name: Mine, class_path: "my.models:Mine"}]
profiles:
  - {llm: file, path: texts.parquet}
  - {llm: vllm, name: here, model: models/llama, prompt: ../outside.j2}
  - {llm: vllm, name: home, model: ~/models/llama}
  - {llm: vllm, name: hub, model: meta-llama/Llama-3.2-3B-Instruct, prompt: gone.j2}
controls: [baseline, kar]
kar: {items: {llm: file, path: items.parquet}}
search: {storage: "sqlite:///search.db"}
""")
    with pytest.raises(StudyError) as refused:
        _refuse_what_stays_here(load_study(path), path)
    for sentence in (
        "dataset 'toy' has the relative path 'data/toy'",
        "profiles 'file' has the relative path 'texts.parquet'",
        "profiles 'file' has the relative path 'items.parquet'",
        "profiles 'here' has the relative path 'models/llama'",
        "profiles 'home' has the relative path '~/models/llama'",
        "profiles 'here' has the prompt '../outside.j2'",
        "profiles 'hub' has the prompt 'gone.j2'",
        "model 'Mine' is a class of your own (my.models:Mine)",
        "search.storage 'sqlite:///search.db' would lie in the job's working directory",
    ):
        assert sentence in str(refused.value)
    assert "meta-llama" not in str(refused.value)


def test_a_job_carries_the_study_s_own_prompts(tmp_path, monkeypatch):
    """The shipped study of LLM choices has one: found by its path in the job's working directory, as at home."""
    from llmkt_ray.sweep.jobs import _package, _refuse_what_stays_here

    monkeypatch.chdir(ROOT)
    path = ROOT / "sweeps" / "llm_choice.yaml"
    study = load_study(path)
    _refuse_what_stays_here(study, path)
    _package(tmp_path, study, path)
    (prompt,) = {entry.prompt for entry in study.profiles if entry.prompt}
    assert PromptTemplate("movies", str(tmp_path / prompt)).digest == PromptTemplate("movies", prompt).digest
    monkeypatch.chdir(tmp_path)
    assert load_study("study.yaml").key == study.key
    assert (tmp_path / "sweeps" / "run.py").is_file()
    assert not list(tmp_path.rglob("__pycache__"))


def test_packed_results_arrive_whole_or_not_at_all(tmp_path):
    source = tmp_path / "source"
    for name in ("card.json", "ledger/trials/a.parquet", "checkpoints/b.pt", "phase1/c.pt", "run.lock"):
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
    path.write_text(study_text(tmp_path).replace(f"storage: {tmp_path}/results", f"storage: file://{tmp_path}/results"))
    assert load_study(path).storage == f"{tmp_path}/results", "a folder as a URI is that folder, fetched through a job: it may not be here"
    relative = absolute.model_copy(update={"storage": "results"})
    assert stored_for_job(relative).storage == str(tmp_path / "results")
    assert stored_for_job(relative).key == relative.key, "where results lie does not change the study"
