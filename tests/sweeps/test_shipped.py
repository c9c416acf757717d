"""Every study that is shipped passes `llmkt check` and `llmkt run --smoke`, whatever data and models are at hand."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from llmkt_ray import cli
from llmkt_ray.profiles import tokenizer
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep.smoke import TRIALS

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "sweeps").glob("*.yaml"))
ISSUE = {
    "first_experiments", "alpha_sensitivity", "layer_scan", "llm_choice", "reducers", "dims", "sparsity", "schedule", "model_breadth",
    "robustness", "paper_ml1m", "paper_cds", "paper_context", "paper_context_ranking",
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


def test_the_study_of_llm_choices_is_planned_without_a_key_a_network_or_a_model(storage, tmp_path, llmkt, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(tokenizer, "hub_answers", lambda: False)
    monkeypatch.setattr(cli.out, "_width", 200)  # COLUMNS is not read where TERM is dumb
    content = yaml.safe_load((ROOT / "sweeps" / "llm_choice.yaml").read_text())
    study = tmp_path / "llm_choice.yaml"
    study.write_text(yaml.safe_dump(content | {"storage": str(storage)}))
    code, out, err = llmkt("plan", study)
    assert code == 0, err
    asked = [entry["name"] for entry in content["profiles"] if entry["llm"] != "template"]
    assert {name.partition(" [")[0] for name in asked} == {"GPT-4", "Claude", "Llama-3.1-8B", "Llama-3.2-3B"}
    lines = " ".join(out.split())
    for name in asked:
        assert f"ml-100k, {name}: planned 943 " in lines, out
    assert "in money for 2 of 7 sets that have a price" in lines


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
