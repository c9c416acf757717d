"""Artifacts that a crash or a disk has damaged are made again; trials without memory or numbers are rows, and the others go on."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.sweep.run import run_study
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from tests.tiny import tiny_study


def run(study, **settings):
    return run_study(study, executor="loop", console=Console(file=io.StringIO()), **settings)


def numbers(study) -> pd.DataFrame:
    return Ledger(study_folder(study)).trials().drop(columns=[*MEASUREMENT_COLUMNS, "study_key"])


def without_manifest(folder: Path) -> None:
    """As a writer leaves it that was killed before its last step."""
    (folder / "manifest.json").unlink()


def half_a_manifest(folder: Path) -> None:
    data = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(data[: len(data) // 2])


def half_a_file(folder: Path) -> None:
    path = largest(folder)
    replace(path, path.read_bytes()[: path.stat().st_size // 2])


def another_byte(folder: Path) -> None:
    path = largest(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    replace(path, bytes(data))


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.suffix != ".json" and path.is_file()), key=lambda path: path.stat().st_size)


def replace(path: Path, data: bytes) -> None:
    """Another file in its place: this process has the old one mapped into its memory."""
    path.unlink()
    path.write_bytes(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pd.DataFrame:
    """The rows of a study whose artifacts nothing happened to."""
    study = tiny_study(tmp_path_factory.mktemp("whole"))
    run(study)
    return numbers(study)


@pytest.mark.parametrize("damage", [without_manifest, half_a_manifest, half_a_file, another_byte])
def test_every_kind_of_artifact_is_made_again(tmp_path, whole, damage):
    study = tiny_study(tmp_path)
    run(study, limit=1)
    for kind in ("split", "profiles", "embeddings", "targets"):
        (folder,) = [path for path in (tmp_path / "results" / "artifacts" / kind).iterdir() if path.is_dir()]
        damage(folder)
    assert run(study).failed == 0
    pd.testing.assert_frame_equal(numbers(study), whole, check_exact=True)


def greedy(spec: TrialSpec, artifacts: TrialArtifacts, **_: object) -> TrialResult:
    values = dict.fromkeys(spec.metrics, 0.5)
    if spec.arm == "shuffled":
        np.ones(2**50, dtype=np.uint8)  # more than an address space: no machine has it
    return TrialResult(spec=spec, status="done", valid=values, test=values)


def test_a_trial_without_memory_is_a_row(tmp_path):
    study = tiny_study(tmp_path)
    summary = run(study, run_trial=greedy)
    assert (summary.done, summary.failed) == (5, 1)
    (row,) = numbers(study).query("status == 'failed'").to_dict("records")
    assert "MemoryError" in row["error_kind"]


def test_trials_whose_numbers_are_lost_are_rows_and_are_not_tried_again(tmp_path):
    model = {"name": "BPR", "epochs": 4, "batch_size": 256, "learning_rate": 1e30, "hyperparameters": {"embedding_size": 8}}
    study = tiny_study(tmp_path, models=[model])
    summary = run(study)
    rows = numbers(study)
    failed = rows[rows["status"] == "failed"]
    assert set(failed["arm"]) == {"baseline", "alpha0", "treated", "shuffled"}
    assert set(failed["error_kind"]) == {"TrainingError"}
    assert failed["error_message"].str.contains("became (?:nan|inf)").all()
    assert (summary.failed, run(study).ran) == (5, 0)
