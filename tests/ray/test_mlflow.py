"""Trials as runs of a real local MLflow server: each once, with the ledger's numbers, and never at a trial's cost."""

import importlib.util
import io
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest
from mlflow.tracking import MlflowClient
from rich.console import Console

from llmkt_ray.errors import StudyError
from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study_file import parse_study
from llmkt_ray.sweep.check import check_study
from llmkt_ray.sweep.mlflow_mirror import uri_problem
from llmkt_ray.sweep.run import run_study, store_of
from llmkt_ray.training.trial import run_trial
from tests.clusters import free_port, kill_tree
from tests.tiny import tiny_study


class Server:
    """MLflow's own server on a SQLite file, on loopback."""

    def __init__(self, root) -> None:
        self.root, self.port = root, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.root}/mlflow.db", "--default-artifact-root", str(self.root / "artifacts")]
        with open(self.root / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(240):
            assert self.process.poll() is None, (self.root / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        pytest.fail("MLflow's server did not answer")

    def end(self) -> None:
        if self.process is not None:
            kill_tree(psutil.Process(self.process.pid))
            self.process.wait()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.end()


def sometimes(spec, artifacts, **settings):
    if spec.arm == "shuffled":
        raise ValueError("no luck")
    return run_trial(spec, artifacts, **settings)


def run(study, **settings) -> str:
    said = io.StringIO()
    run_study(study, executor="loop", console=Console(file=said, width=1000), **settings)
    return said.getvalue()


def test_every_trial_is_one_run_with_the_ledger_s_numbers(server, tmp_path, capfd):
    study = tiny_study(tmp_path, tracking={"mlflow": server.uri})
    check_study(study, store_of(study))
    capfd.readouterr()
    said = run(study, run_trial=sometimes)
    assert capfd.readouterr() == ("", ""), "neither MLflow nor a failing trial write to the terminal"
    assert f"MLflow at {server.uri} does not take the results" in said, "a server that is away fails nothing"
    assert len(Ledger(study_folder(study)).trials()) == 6

    server.start()
    for _ in range(2):  # what was missing is sent by the next run, and nothing twice
        assert "MLflow" not in run(study)
    client = MlflowClient(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    rows = Ledger(study_folder(study)).trials().set_index("trial_key")
    assert sorted(found.data.tags["trial_key"] for found in runs) == sorted(rows.index)
    epochs = Ledger(study_folder(study)).epochs()
    for found in runs:
        row = rows.loc[found.data.tags["trial_key"]]
        assert found.data.params["arm"] == row["arm"]
        assert found.info.run_name.startswith(f"toy {row['model']} {row['arm']}")
        if row["status"] == "failed":
            assert (found.info.status, found.data.tags["error"]) == ("FAILED", "ValueError: no luck")
            continue
        assert found.info.status == "FINISHED"
        assert found.data.metrics["test_NDCG_at_10"] == pytest.approx(row["test_NDCG@10"])
        mine = epochs[epochs["trial_key"] == row.name]
        if row["arm"] != "reference":
            history = client.get_metric_history(found.info.run_id, "epoch/valid_NDCG_at_10")
            assert [point.step for point in history] == list(mine["epoch"])
            assert [point.value for point in history] == pytest.approx(list(mine["valid_NDCG@10"]))

    run(study, retry_failed=True)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert len(runs) == 7, "the trial that was tried again is a run of its own"
    assert sum(found.info.status == "FAILED" for found in runs) == 1
    run(study)
    assert len(client.search_runs([client.get_experiment_by_name("tiny").experiment_id])) == 7


def test_a_password_in_the_uri_is_refused():
    with pytest.raises(StudyError, match="give MLFLOW_TRACKING_PASSWORD to the environment"):
        parse_study("name: a\ndatasets: [ml-100k]\nmodels: [BPR]\ntracking: {mlflow: 'https://me:secret@host'}\n")


def test_without_the_package_it_is_said_before_anything_starts(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, package=None: None if name == "mlflow" else found(name, package),
    )
    study = tiny_study(tmp_path, tracking={"mlflow": "sqlite:///x.db"})
    with pytest.raises(StudyError, match=r'pip install "llmkt_ray\[mlflow\]"'):
        check_study(study, store_of(study))


@pytest.mark.parametrize("uri", ["foo://bar", "httpp://host:5000"])
def test_a_uri_that_mlflow_does_not_understand_is_told_by_check_and_ends_no_run(tmp_path, uri):
    study = tiny_study(tmp_path, tracking={"mlflow": uri})
    with pytest.raises(StudyError, match=rf"tracking\.mlflow '{uri}' is no tracking URI that MLflow understands; .* http, https"):
        check_study(study, store_of(study))
    assert f"MLflow at {uri} does not take the results" in run(study, limit=1)
    assert len(Ledger(study_folder(study)).trials()) == 1


def test_a_look_at_a_uri_makes_nothing(tmp_path):
    assert uri_problem(f"sqlite:///{tmp_path}/new/mlflow.db") is None
    assert list(tmp_path.iterdir()) == []
