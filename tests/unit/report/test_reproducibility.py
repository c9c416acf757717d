"""The card: everything that is needed to make a study again, and what it took."""

import html
import json
import re
import sys

import pytest
import yaml

from llmkt_ray.report import build
from llmkt_ray.report.load import load
from llmkt_ray.report.reproducibility import card_entries, card_tables, commands, study_yaml
from llmkt_ray.results import card
from llmkt_ray.results.card import CARD
from llmkt_ray.results.llm_texts import llm_texts
from llmkt_ray.seeds import training_seed
from llmkt_ray.study_file import parse_study
from tests.unit.report.synthetic import World, specs, study_of, write

WORLD = World(seeds=2, n_users=20, epochs=4)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("study"), WORLD)
    known = json.loads((folder / CARD).read_text())
    plan = {"prompts": 25, "prompt_tokens": 118_000, "output_tokens": 44_000, "gpu_hours": 2.5, "money": 5.5}
    took = {"asked": 27, "prompt_tokens": 120_000, "output_tokens": 30_000, "gpu_hours": 2.0, "cost": 4.25, "planned": plan}
    known["profiles"][0]["notes"] |= took | {"wall_s": 7200.0}
    known["item_texts"] = [
        # Of an earlier version: nothing was planned. A file has no tokens.
        {"llm": "items by gpt-4o-mini", "dataset": "ml-1m", "key": "i1", "notes": {"prompt_tokens": 5_000, "output_tokens": 1_000}},
        {"llm": "items by file", "dataset": "ml-1m", "key": "i2", "notes": {"items": 9}},
    ]
    (folder / CARD).write_text(json.dumps(known))
    return load(folder)


def table(results, title):
    found = next(t for t in card_tables(results) if t.title == title)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_the_study_file_on_the_page_is_the_study(results):
    again = parse_study(study_yaml(results))
    assert again == study_of(WORLD)
    assert again.key == results.card["key"]


def test_the_commands_install_the_versions_and_run_the_file(results):
    lines = commands(results).splitlines()
    assert f"torch=={results.card['versions']['torch'].partition('+')[0]}" in lines[1]
    assert "recbole==1.2.0" in lines[1]
    assert lines[-1] == "llmkt run synthetic.yaml"
    assert "ran here as: llmkt run synthetic.yaml" in lines[-2]


@pytest.mark.parametrize("first", ["/venv/bin/llmkt", "/src/llmkt_ray/cli.py", "/src/llmkt_ray/__main__.py"])
def test_the_command_is_one_that_can_be_typed(monkeypatch, first):
    monkeypatch.setattr(sys, "argv", [first, "run", "my study.yaml", "--workers", "2"])
    assert card.command() == "llmkt run 'my study.yaml' --workers 2"


def test_the_training_seeds_are_those_of_the_trials(results):
    found = {
        (row["dataset"], row["model"], int(row["seed"])): int(row["training seed"])
        for row in table(results, "Training seeds, shared by all arms")
    }
    trained = {(s.dataset, s.model, s.seed_index): s.seed for s in specs(WORLD, study_of(WORLD)) if s.arm != "reference"}
    assert found == trained
    assert found["ml-1m", "MultiVAE", 1] == training_seed(results.study["seed"], "ml-1m", "MultiVAE", 1)


def test_hours_and_tokens_are_summed_by_stage(results):
    spent = {row["stage"]: row for row in table(results, "Hours and tokens spent")}
    assert (spent["profiles"]["wall, h"], spent["profiles"]["tokens read"], spent["profiles"]["tokens written"]) == (
        "2.00",
        "120,000",
        "30,000",
    )
    assert spent["trials"]["wall, h"] == f"{results.trials['wall_s'].sum() / 3600:.2f}"
    assert spent["trials"]["GPU, h"] == "0.00"
    assert (spent["item texts"]["artifacts or trials"], spent["item texts"]["tokens read"]) == ("2", "5,000")
    assert ("tokens of language models", "156,000") in card_entries(results)


def test_what_was_planned_for_language_models_stands_beside_what_was_taken(results):
    rows = {(row["texts by"], row[""]): list(row.values())[4:] for row in table(results, "Language models: planned and taken")}
    none = "\u2013"
    assert rows == {
        ("gpt-4o-mini", "planned"): ["25", "118,000", "\u2264 44,000", "2.50", "5.50"],
        ("gpt-4o-mini", "taken"): ["27", "120,000", "30,000", "2.00", "4.25"],
        ("items by gpt-4o-mini", "planned"): [none] * 5,
        ("items by gpt-4o-mini", "taken"): [none, "5,000", "1,000", none, none],
    }


def test_sets_of_one_choice_are_summed_each_once(results):
    first = results.card["profiles"][0]
    notes = first["notes"] | {"cost": None, "planned": first["notes"]["planned"] | {"money": True}}
    [texts] = llm_texts({"profiles": [first, first, {**first, "key": "another split", "notes": notes}, {"llm": "template", "notes": None}]})
    assert (texts.sets, texts.taken.tokens, texts.planned.prompts) == (2, 300_000, 50)
    assert (texts.taken.money, texts.planned.money, texts.taken.gpu_hours) == (None, None, 4.0)


def test_leak_certificates_hosts_and_versions_are_there(results):
    assert ("leak certificate", "verified (gpt-4o-mini)") in card_entries(results)
    assert table(results, "Leak certificates")[0] | {"why": "", "split": ""} == {
        "profiles": "gpt-4o-mini", "dataset": "ml-1m", "status": "verified", "pairs checked": "4,242", "in validation or test": "0",
        "of no part": "0", "why": "", "split": "",
    }  # fmt: skip
    assert [(row["host"], row["device"]) for row in table(results, "Where trials ran")] == [("node-1", "cpu")]
    torch = next(row for row in table(results, "Versions") if row["package"] == "torch")
    assert torch["trials"] == "2.13.0"
    assert {row["artifact"] for row in table(results, "Artifact keys")} == {"split", "profiles", "item texts", "embeddings", "targets"}


def test_the_page_has_it_all(results):
    page = build(results.folder).read_text()
    text = html.unescape(re.sub(r"<[^>]+>", " ", page[page.index('id="card"') :]))
    for words in (
        "leak certificate",
        "Hours and tokens spent",
        "Training seeds",
        "Where trials ran",
        "pip install",
        "llmkt run synthetic.yaml",
    ):
        assert words in text, words
    shown = re.search(r"The study file</summary><pre><code>(.*?)</code>", page, re.DOTALL)[1]
    assert yaml.safe_load(html.unescape(shown)) == results.study
