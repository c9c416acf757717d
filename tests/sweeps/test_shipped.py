"""Every study that is shipped passes `llmkt check` and `llmkt run --smoke`, whatever data and models are at hand."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from llmkt_ray import cli
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep.smoke import TRIALS

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "sweeps").glob("*.yaml"))
ISSUE = {
    "first_experiments", "alpha_sensitivity", "layer_scan", "llm_choice", "reducers", "dims", "sparsity", "schedule", "model_breadth",
    "robustness", "paper_ml1m", "paper_cds", "paper_context",
}  # fmt: skip


@pytest.fixture(scope="session")
def storage(tmp_path_factory):
    """One storage for all: texts are encoded and reduced once for all studies."""
    folder = tmp_path_factory.mktemp("smoke")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def llmkt(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["llmkt", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def test_every_study_that_was_asked_for_is_there():
    assert {path.stem for path in STUDIES} >= ISSUE


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_check_and_smoke(path, storage, tmp_path, llmkt):
    study = tmp_path / path.name
    study.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"storage": str(storage)}))
    code, out, err = llmkt("check", study)
    assert code == 0, err
    assert "no problems found" in out
    code, out, err = llmkt("run", study, "--smoke", "--executor", "loop")
    assert code == 0, err
    folder = storage / f"{yaml.safe_load(path.read_text())['name']}-smoke"
    rows = Ledger(folder).trials()
    assert 0 < len(rows) <= TRIALS
    assert set(rows["status"]) == {"done"}
    assert (rows["arm"] != "reference").any(), "nothing was trained"
    assert set(rows["dataset"]) == {"ml-100k"}
    assert (folder / "report.html").exists()
