"""Every study that is shipped passes `llmkt check` and `llmkt run --smoke`, whatever data and models are at hand."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from llmkt_ray import cli
from llmkt_ray.embeddings.reducers import REDUCERS
from llmkt_ray.profiles import tokenizer
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study import StudyConfig
from llmkt_ray.study_file import load_study
from llmkt_ray.sweep.smoke import TRIALS
from llmkt_ray.training.bridge.registry import MODELS

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


def shipped(name: str) -> StudyConfig:
    return load_study(ROOT / "sweeps" / f"{name}.yaml")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_treated_cell_has_its_twins(path):
    study = load_study(path)
    for model in study.models:
        assert {"baseline", "alpha0", "shuffled"} <= set(study.controls_of(model)), model.name


def test_studies_vary_what_they_are_about():
    """The questions of METHOD.md, section 7, as factors of the study that is named after each."""
    first = shipped("first_experiments")
    assert first.transfer.layers == ("layer 1", "layer 2", "layer 3")
    assert first.transfer.alphas == (0.3, 0.5, 0.7)
    alphas = shipped("alpha_sensitivity").transfer.alphas
    assert (min(alphas), max(alphas)) == (0.1, 0.9)
    assert all(model.layers == "all" or len(model.layers) >= 3 for model in shipped("layer_scan").models)
    assert {entry.method for entry in shipped("reducers").reduction} == set(REDUCERS)
    for method in ("pca", "umap"):
        dims = [entry.dims for entry in shipped("dims").reduction if entry.method == method]
        assert (min(dims), max(dims), len(dims)) == (8, 256, 6)
    assert shipped("sparsity").datasets[0].train_share == (1.0, 0.5, 0.25, 0.1, 0.05)
    schedules = shipped("schedule").transfer.schedule
    assert {entry.kind for entry in schedules} == {"two_phase", "joint", "pretrain", "reversed"}
    assert len({entry.switch for entry in schedules if entry.kind == "two_phase"}) == 5
    assert {MODELS[model.name].family for model in shipped("model_breadth").models} == {"general", "context"}
    llm = shipped("llm_choice")
    assert len(llm.embedding) == 2
    for factor in ("prompt", "generation"):
        assert len({getattr(entry, factor) for entry in llm.profiles}) == 2, factor
    robust = shipped("robustness")
    assert (robust.search.kind, robust.search.objectives, robust.seeds) == ("optuna", ("mean_minus_sd",), 5)


@pytest.mark.parametrize(
    ("name", "dataset", "dims"), [("paper_ml1m", "ml-1m", 64), ("paper_cds", "amazon-cds", 64), ("paper_context", "ml-1m", 32)]
)
def test_studies_of_the_paper_have_the_settings_that_are_known(name, dataset, dims):
    """METHOD.md, section 1."""
    study = shipped(name)
    assert (study.compat, study.datasets[0].name, study.reduction[0].method, study.reduction[0].dims) == ("paper", dataset, "umap", dims)
    assert (study.profiles[0].model, study.embedding[0].encoder) == ("gpt-3.5-turbo", "text-embedding-ada-002")
    assert (min(study.transfer.alphas), max(study.transfer.alphas), study.transfer.balance) == (0.5, 0.8, "none")
    assert [schedule.switch for schedule in study.transfer.schedule] == [0.5]
    if name == "paper_context":
        assert {"static_profile", "kar", "kar_treated"} <= set(study.controls)
        assert (study.evaluation.protocol, study.evaluation.metrics[:2]) == ("labelled", ("AUC", "LogLoss"))
    if name == "paper_cds":
        rule = study.datasets[0].filters
        assert (rule.user_min, rule.user_max, rule.item_min) == (20, 500, 10)


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
