"""What a job of a study is called, where it leaves its results, and what is said of a cluster's answers; no cluster is asked."""

import base64
import gzip
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus
from typer.testing import CliRunner

from llmkt_ray.cli import app
from llmkt_ray.errors import LlmktError, ResourceError, StorageError, StudyError
from llmkt_ray.study import StudyConfig
from llmkt_ray.sweep.jobs import Job, Jobs, _explained, pack, stored_for_job, unpack

ADDRESS = "http://127.0.0.1:14013"
STUDY = StudyConfig.model_validate({"name": "tiny", "datasets": ["ml-100k"], "models": ["BPR"]})


def test_a_home_on_an_object_store_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKT_HOME", "s3://team/llmkt?region=eu-west-1")
    assert stored_for_job(STUDY).storage == "s3://team/llmkt/results?region=eu-west-1"
    search = StudyConfig.model_validate({**STUDY.model_dump(mode="json"), "search": {"kind": "optuna"}})
    with pytest.raises(StudyError, match=r"Optuna's journal cannot live: give `search.storage` .*LLMKT_HOME is 's3://team"):
        stored_for_job(search)


@pytest.mark.parametrize(
    ("raised", "is_refused"),
    [
        (AuthenticationError("Authentication failed: Forbidden"), True),
        (RuntimeError("Request failed with status code 403: Forbidden."), True),
        (ConnectionError(f"Failed to connect to Ray at address: {ADDRESS}."), False),
        (RuntimeError("Request failed with status code 404: job authentication-4034401-1 does not exist."), False),
    ],
)
def test_only_a_refused_token_is_called_one(raised: Exception, is_refused: bool) -> None:
    with pytest.raises(ResourceError) as told, _explained(ADDRESS):
        raise raised
    assert ("refuses the token" in str(told.value)) is is_refused


def test_the_next_attempt_follows_the_last_one_that_the_cluster_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray drops the oldest ended jobs of a cluster, and a submission id is used once."""
    known = [SimpleNamespace(submission_id=f"tiny-{STUDY.key}-{n}", status=JobStatus.SUCCEEDED) for n in (3, 4)]
    jobs = Jobs.__new__(Jobs)
    jobs.file, jobs.study, jobs.address = tmp_path / "study.yaml", STUDY, ADDRESS
    jobs._client = SimpleNamespace(list_jobs=lambda: known)  # type: ignore[assignment]
    started: list[tuple[str, str]] = []
    monkeypatch.setattr(Jobs, "_start", lambda _, name, command: started.append((name, command)))
    jobs.submit("--retry-failed")
    assert started == [(f"tiny-{STUDY.key}-5", "python -m sweeps.run study.yaml --retry-failed")]


def test_a_disk_that_takes_no_results_is_not_called_damage(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "card.json").write_text("{}")
    text = pack(str(tmp_path / "source"))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=r"writing .*file/here failed"):
        unpack(text, tmp_path / "file" / "here")
    for damaged in (base64.b64encode(b"no archive").decode(), base64.b64encode(gzip.compress(b"x" * 99)[:-9]).decode()):
        with pytest.raises(LlmktError, match="arrived damaged"):
            unpack(damaged, tmp_path / "there")


def test_submit_passes_on_what_the_run_shall_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(Jobs, "__init__", lambda *_: None)
    monkeypatch.setattr(Jobs, "submit", lambda _, *options: (given.extend(options), (Job("tiny-1", "PENDING"), True))[1])
    done = CliRunner().invoke(app, ["submit", str(tmp_path / "study.yaml"), "--address", ADDRESS, "--retry-failed", "--no-follow"])
    assert (done.exit_code, given) == (0, ["--retry-failed"]), done.output
