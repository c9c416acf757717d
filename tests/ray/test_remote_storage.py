"""A whole study on an object store: rows, card, artifacts, checkpoints and report live there; the numbers are those of a local disk."""

import io
from pathlib import Path

import pandas as pd
import pyarrow.fs as pafs
import pytest
from moto import server as moto_server
from rich.console import Console
from typer.testing import CliRunner

from llmkt_ray.api import Study
from llmkt_ray.artifacts import FileStore, below
from llmkt_ray.cli import app
from llmkt_ray.errors import StorageError
from llmkt_ray.results import folder as folders
from llmkt_ray.results.folder import holder, locked, study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.results.transport import copy_results
from llmkt_ray.sweep.cluster import cluster
from llmkt_ray.sweep.journal import read_progress
from llmkt_ray.sweep.run import run_study, scratch_folder
from llmkt_ray.sweep.spare import SpareCheckpoint
from llmkt_ray.training.trial import run_trial
from tests.tiny import tiny_study

pytestmark = pytest.mark.ray
QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def bucket():
    """A real S3 server on loopback, with the credentials in the environment, where Ray's workers find them too."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = ":".join(map(str, server.get_host_and_port()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        pafs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True).create_dir("team")
        yield f"s3://team/results?endpoint_override={endpoint}&scheme=http&region=us-east-1"
    server.stop()


def numbers(folder):
    return Ledger(folder).trials().drop(columns=[*MEASUREMENT_COLUMNS, "study_key"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    study = tiny_study(tmp_path_factory.mktemp("reference"))
    run_study(study, executor="loop", console=QUIET)
    return numbers(study_folder(study))


@pytest.mark.parametrize("executor", ["loop", "ray"])
def test_a_study_runs_there_and_comes_home(bucket, tmp_path, reference, executor):
    config = tiny_study(tmp_path, storage=bucket, name=f"far-{executor}")
    study = Study(config)
    study.check()
    with cluster(num_cpus=2):
        assert study.run(executor=executor, console=QUIET).done == 6
        assert study.run(executor=executor, console=QUIET).ran == 0, "what is in the bucket is not repeated"
    folder = study_folder(config)
    pd.testing.assert_frame_equal(numbers(folder), reference, check_exact=True)
    assert not (tmp_path / "results").exists(), "nothing is kept on this machine"
    names = FileStore(folder).list("", recursive=True)
    assert {"card.json", "study.yaml", "report.html", "verdict.json"} <= set(names)
    assert not [name for name in names if name.startswith("checkpoints/")]
    assert len({name.split("/")[1] for name in names if name.startswith("tensorboard/")}) == 5, "one folder a trained trial"
    assert any(name.startswith("logs/") for name in names)
    assert read_progress(folder)["done"] == 6
    now = study.status()
    assert (now.done, now.failed, now.planned, now.holder) == (6, 0, 6, None)
    assert now.report == study.report()
    assert now.report.startswith(f"s3://team/results/far-{executor}/report.html?")
    copy_results(FileStore(folder), FileStore(tmp_path / "here"))
    assert b"<html" in (tmp_path / "here" / "report.html").read_bytes()
    assert len(Ledger(tmp_path / "here").trials()) == 6


def test_report_diff_merge_and_export_read_a_study_that_is_kept_there(bucket, tmp_path, reference):
    """From the command line, by the URI of the results folder; splits and targets lie beside it in the bucket."""
    config = tiny_study(tmp_path, storage=bucket, name="kept")
    run_study(config, executor="loop", console=QUIET)
    folder = study_folder(config)

    def llmkt(*words):
        done = CliRunner().invoke(app, [*words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    assert llmkt("report", folder) == (0, f"{below(folder, 'report.html')}\n")
    assert b"<html" in (FileStore(folder).read_bytes("report.html") or b"")
    code, _ = llmkt("merge", folder, "--into", str(tmp_path / "whole" / "kept"))
    assert code == 0
    assert len(Ledger(tmp_path / "whole" / "kept").trials()) == 6
    assert FileStore(tmp_path / "whole" / "artifacts").list("split", recursive=True), "the split came along"
    code, said = llmkt("diff", folder, str(tmp_path / "whole" / "kept"))
    assert (code, said.splitlines()[0]) == (0, "study: the same")
    assert "6 equal, 0 with other numbers" in said
    code, said = llmkt("export", "best", "--results", folder, "--to", str(tmp_path / "winner"))
    assert code == 0, said
    assert (tmp_path / "winner" / "model.pth").exists()


def test_two_runs_of_one_study_are_refused_there_too(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "HEARTBEAT_S", 0.5)
    config = tiny_study(tmp_path, storage=bucket, name="busy")
    with locked(study_folder(config)):
        assert holder(study_folder(config)) is not None
        with pytest.raises(StorageError, match="is being run already"):
            run_study(config, executor="loop", console=QUIET)


class Taken(BaseException):
    """The machine is gone in the middle of a trial: nothing after this line runs."""


def test_a_trial_goes_on_from_the_copy_of_its_checkpoint_on_another_machine(bucket, tmp_path, monkeypatch, reference):
    config = tiny_study(tmp_path, storage=bucket, name="spot")
    first, second = tmp_path / "first-machine", tmp_path / "second-machine"
    epochs: list[int] = []

    def every_epoch(spec, artifacts, *, on_epoch, **settings):
        def watched(row):
            epochs.append(row["epoch"])
            on_epoch(row)
            if spec.arm == "treated" and row["epoch"] == 2 and len(epochs) < 20:
                epochs.extend([0] * 20)
                raise Taken

        return run_trial(spec, artifacts, on_epoch=watched, checkpoint_interval_s=0, **settings)

    monkeypatch.setattr("llmkt_ray.sweep.run.gettempdir", lambda: str(first))
    with pytest.raises(Taken):
        run_study(config, executor="loop", console=QUIET, run_trial=every_epoch)
    copies = [name for name in FileStore(study_folder(config)).list("checkpoints") if name.endswith(".pt")]
    assert len(copies) == 1
    from_here = SpareCheckpoint(study_folder(config), tmp_path / "driver", Path(copies[0]).stem)
    assert from_here.written_ns() is not None, "a driver on a third machine sees that the trial got somewhere"
    assert SpareCheckpoint(study_folder(config), tmp_path / "driver", "no-such-trial").written_ns() is None
    monkeypatch.setattr("llmkt_ray.sweep.run.gettempdir", lambda: str(second))
    assert str(second) in scratch_folder(config)
    before = len(epochs)
    assert run_study(config, executor="loop", console=QUIET, run_trial=every_epoch).failed == 0
    assert epochs[before] == 3, "the interrupted trial was not resumed at its epoch"
    pd.testing.assert_frame_equal(numbers(study_folder(config)), reference, check_exact=True)
    assert FileStore(study_folder(config)).list("checkpoints") == []


def test_a_local_study_needs_no_copy(tmp_path):
    spare = SpareCheckpoint(str(tmp_path / "results"), tmp_path / "checkpoints", "key")
    spare.fetch(), spare.push(), spare.delete()
    assert list(tmp_path.iterdir()) == []
