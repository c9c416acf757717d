"""A trial from its spec to its row: what is trained is not lost before the row is written, and nothing is left behind after."""

import io
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from llmkt_ray.errors import StorageError
from llmkt_ray.results.folder import Hold, study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep import run as run_module
from llmkt_ray.sweep.run import run_study, scratch_folder
from llmkt_ray.training import trial as training
from llmkt_ray.training.trial import run_trial
from tests.tiny import tiny_study


@pytest.fixture
def study(tmp_path):
    return tiny_study(tmp_path, evaluation={"metrics": ["NDCG@10"], "references": []}, controls=["alpha0"], seeds=1)


@pytest.fixture
def trained():
    """The epochs that are trained, in order."""
    return []


@pytest.fixture
def run(study, trained):
    def every_epoch(spec, artifacts, *, on_epoch, **settings):
        def note(row):
            trained.append(row["epoch"])
            on_epoch(row)

        return run_trial(spec, artifacts, on_epoch=note, checkpoint_interval_s=0, **settings)

    return lambda **settings: run_study(study, executor="loop", console=Console(file=io.StringIO()), run_trial=every_epoch, **settings)


def left(study):
    return list(Path(study_folder(study), "checkpoints").iterdir())


def full(*_):
    raise StorageError("no space left")


def killed(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "name", "fault", "ends"), [(Ledger, "record", full, StorageError), (training, "open_test", killed, KeyboardInterrupt)]
)
def test_a_trained_trial_that_got_no_row_goes_on_at_its_last_epoch(study, run, trained, monkeypatch, owner, name, fault, ends):
    """The disk is full when its row is written; or it is killed while it ranks the test items."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fault)
        with pytest.raises(ends):
            run(limit=1)
    epochs = list(trained)
    assert len(left(study)) == 1
    trained.clear()
    assert run(limit=1).done == 1
    assert trained == epochs[-1:]
    assert left(study) == []


def test_a_trial_that_fails_leaves_no_checkpoint(study, run, monkeypatch):
    def fails(*_):
        raise ValueError("no memory")

    monkeypatch.setattr(training, "open_test", fails)
    assert run(limit=1).failed == 1
    assert left(study) == []


def test_a_run_whose_folder_was_taken_over_gives_out_no_further_trial(study, monkeypatch):
    """A driver that was suspended too long on an object store: the one that took it for dead does its trials."""
    hold, given = Hold(), list[str]()

    @contextmanager
    def held(*_):
        yield hold

    def taken_over(spec, artifacts, **_):
        given.append(spec.key)
        hold.lost = StorageError("this study is being run already")
        return run_trial(spec, artifacts)

    monkeypatch.setattr(run_module, "locked", held)
    with pytest.raises(StorageError, match="run already"):
        run_study(study, executor="loop", console=Console(file=io.StringIO()), run_trial=taken_over)
    assert len(given) == 1


def test_what_runs_keep_on_a_machine_beside_remote_results_is_each_run_s_own(tmp_path, monkeypatch):
    """The key leaves out name and storage, and a folder that one user has made another cannot write."""
    monkeypatch.setattr(run_module, "gettempdir", lambda: str(tmp_path))
    studies = [tiny_study(tmp_path, name=name, storage=f"mock://{bucket}") for name in ("one", "two") for bucket in ("a", "b")]
    assert len({study.key for study in studies}) == 1
    folders = [scratch_folder(study) for study in studies]
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    folders += [scratch_folder(study) for study in studies]
    assert len(set(folders)) == 8
    assert len({Path(folder).parent for folder in folders}) == 2, "nothing is shared by two users"
    assert scratch_folder(tiny_study(tmp_path)) == study_folder(tiny_study(tmp_path))
