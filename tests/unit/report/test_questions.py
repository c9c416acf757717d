"""The questions of METHOD.md, section 7: each section appears when the study holds the data, finds what is planted, and only then."""

import json
import re

import pytest
from statsmodels.stats.multitest import multipletests

from llmkt_ray.errors import StorageError
from llmkt_ray.report import build
from llmkt_ray.report.context import Context
from llmkt_ray.report.default import document, fragment
from llmkt_ray.report.findings import find
from llmkt_ray.report.levels import compared, sentence, words_of
from llmkt_ray.report.load import load
from llmkt_ray.report.sections.cost import pareto
from llmkt_ray.report.sections.questions import question_sections
from llmkt_ray.report.sections.sensitivity import heat_maps
from llmkt_ray.report.sections.sources import source_parts
from llmkt_ray.report.sections.sparsity import sparsity_section
from llmkt_ray.results.ledger import Ledger
from tests.unit.report.synthetic import World, result_of, specs, study_of, write

BASE = {"models": {"MultiVAE": 0.2}, "alphas": (0.5,), "seeds": 3, "n_users": 150, "epochs": 4, "seed_sd": 0.0005}
FLAT = {"treated": lambda model, alpha, layer: 0.05}


def _sections(folder, **more):
    results = load(write(folder, World(**{**BASE, **FLAT, **more})))
    findings = find(results)
    return {s.key: s for s in question_sections(Context(results), findings) if s is not None}, results, findings


def test_a_study_of_one_cell_has_none_of_them_but_speed_and_cost(tmp_path):
    assert set(_sections(tmp_path)[0]) == {"speed", "cost"}


def test_the_better_reducer_is_found(tmp_path):
    gain = {"pca": 0.1, "umap": 0.0, "random_projection": 0.0}
    sections, *_ = _sections(tmp_path, reductions=tuple(gain), moved=lambda spec: gain[spec.factors["reduction"]])
    ((question, answer, evidence),) = sections["reducers"].items
    assert question == "Which reducer for MultiVAE on ml-1m?"
    assert answer == "pca: both others are worse."
    assert "conditional on one split" in evidence


def test_reducers_that_do_equally_well_are_inconclusive(tmp_path):
    sections, *_ = _sections(tmp_path, reductions=("pca", "umap"))
    assert sections["reducers"].items[0][1].startswith("Inconclusive: ")


def test_levels_are_compared_where_all_else_is_equal(tmp_path):
    """Of two layers and two reducers, one combination has not run: its layer says nothing about the reducers."""
    world = World(**{**BASE, **FLAT, "layers": ("a", "b"), "reductions": ("pca", "umap")})
    results = load(write(tmp_path, world, keep=lambda spec: (spec.layer, spec.factors.get("reduction")) != ("b", "umap")))
    (found,) = compared(results, find(results), "reducer")
    assert [level.cells for level in found.levels] == [1, 1]


def test_schedule_and_switch_are_one_factor(tmp_path):
    schedules = ({}, {"switch": 0.25}, {"kind": "joint"}, {"handover": "best_valid"})
    sections, *_ = _sections(tmp_path, schedules=schedules)
    names = {row[1] for row in sections["schedules"].tables[0].rows}
    assert names == {"two-phase at 0.5", "two-phase at 0.25", "joint", "two-phase at 0.5 best valid"}
    assert words_of({"schedule": "pretrain", "switch": 0.5, "alpha_schedule": "constant"}) == "pretrain at 0.5"


def test_schedules_that_differ_in_what_they_freeze_are_cells_of_their_own(tmp_path):
    """They differ in no column of the ledger: without a look at the spec the last of them would stand for all."""
    world = World(**{**BASE, **FLAT, "schedules": ({}, {"freeze": {"phase2": ["item_*"]}})})
    results = load(write(tmp_path, world))
    findings = find(results)
    frozen = [finding.cell.factors["freeze"] for finding in findings]
    assert sorted(frozen) == ["-", '{"phase2":["item_*"]}']
    for finding, freeze in zip(findings, frozen, strict=True):
        specs = [json.loads(results.trials["spec"][row]) for row in finding.cell.rows]
        assert {bool(spec["schedule"]["freeze"]) for spec in specs if spec["arm"] != "baseline"} == {freeze != "-"}
    assert words_of({"schedule": "two_phase", "switch": 0.5, "freeze": "-"}) == "two-phase at 0.5"
    assert words_of({"schedule": "two_phase", "freeze": frozen[0]}) != words_of({"schedule": "two_phase", "freeze": frozen[1]})
    wanted = fragment(results, findings, {"alpha": 0.5, "schedule": "two_phase", "freeze": '{"phase2":["item_*"]}'})
    assert wanted["transfer"]["schedule"] == {"kind": "two_phase", "freeze": {"phase2": ["item_*"]}}


def test_two_trials_under_the_same_labels_stop_the_page(tmp_path):
    """Profiles that were replaced in place: without a word one of the two would win by its key, and which one is chance."""
    world = World(**{**BASE, **FLAT})
    folder = write(tmp_path, world, single=True)
    spec = next(spec for spec in specs(world, study_of(world)) if spec.arm == "treated")
    rungs = spec.model_copy(update={"rungs": ((1, 0.1),)})
    Ledger(folder).record(result_of(world, rungs), "k")
    assert find(load(folder)), "rungs change no number of a trial that has finished"
    Ledger(folder).record(result_of(world, spec.model_copy(update={"targets_key": "other"})), "k")
    with pytest.raises(StorageError, match=r"are both 'treated' of MultiVAE on ml-1m at split 0, seed 0, .* differ in targets_key: a file"):
        find(load(folder))


def test_sparsity_is_the_achieved_one_with_the_papers_marked(tmp_path):
    sections, *_ = _sections(
        tmp_path, train_shares=(1.0, 0.25, 0.05), moved=lambda spec: 0.3 * (1 - float(spec.factors["train_share"])), seeds=4
    )  # fmt: skip
    section = sections["sparsity"]
    assert "more where data are sparser" in section.lead
    assert [row[2] for row in section.tables[0].rows] == ["95.50%", "98.88%", "99.78%"]  # of the card, not of the share
    texts = [mark.text for figure in section.figures for mark in figure.canvas.marks if hasattr(mark, "text")]
    assert texts.count("99.45 %") == len(section.figures) == 2


def test_shares_that_reach_the_same_sparsity_stand_side_by_side(tmp_path):
    folder = write(tmp_path, World(**{**BASE, **FLAT, "train_shares": (1.0, 0.5), "n_users": 30}))
    results = load(folder)
    for entry in results.card["datasets"]:
        entry["notes"]["sparsity"]["train"] = 0.97
    section = sparsity_section(results, find(results))
    assert [row[1:3] for row in section.tables[0].rows] == [("50%", "97.00%"), ("100%", "97.00%")]


def test_embedding_size_against_fidelity_and_ranking(tmp_path):
    extra = {"reduction": [{"method": "umap", "dims": dims} for dims in (8, 32, 128)]}
    sections, *_ = _sections(tmp_path, dims=(8, 32, 128), extra=extra)
    fidelity, ranking = sections["size"].tables
    assert [row[3:5] for row in fidelity.rows] == [("8", "0.667"), ("32", "0.889"), ("128", "0.970")]
    assert [row[1] for row in ranking.rows] == ["8", "32", "128"]
    assert [figure.name for figure in sections["size"].figures] == ["fidelity-umap-gpt-4o-mini-ml-1m", "size-MultiVAE-ml-1m"]


def test_shares_of_llm_prompt_generation_and_encoder(tmp_path):
    profiles = [
        {"llm": "vllm", "model": model, "name": f"{model}-{prompt}-{generation}", "generation": generation, "prompt": prompt}
        for model in ("llama", "qwen") for prompt in (None, "short.j2") for generation in (0, 1)
    ]  # fmt: skip
    sections, results, _ = _sections(
        tmp_path, engine="vllm", llms=tuple(p["name"] for p in profiles), encoders=("mini", "ada"), extra={"profiles": profiles},
        moved=lambda spec: 0.05 * str(spec.factors["llm"]).startswith("qwen") + 0.01 * (spec.factors["encoder"] == "ada"),
    )  # fmt: skip
    rows = {row[1]: float(row[2].rstrip("%")) for row in sections["sources"].tables[0].rows}
    assert set(rows) == {"LLM", "prompt version", "generation seed", "encoder", "seed", "rest"}
    assert rows["LLM"] > 40
    assert rows["encoder"] > max(rows["prompt version"], rows["generation seed"])
    assert source_parts(results.study)["qwen-short.j2-1"] == {"LLM": "qwen", "prompt version": "short.j2", "generation seed": "1"}


def test_factors_that_work_only_together_are_named(tmp_path):
    sections, *_ = _sections(
        tmp_path, layers=("a", "b"), reductions=("pca", "umap"),
        moved=lambda spec: 0.1 * ((spec.layer == "a") == (spec.factors["reduction"] == "pca")),
    )  # fmt: skip
    assert sections["interactions"].lead == "The best level of one depends on the other: layer \u00d7 reducer."


@pytest.mark.parametrize(("seeds", "words"), [(1, "no noise floor is drawn"), (3, "Dotted line: the training seed")])
def test_a_noise_floor_is_spoken_of_where_it_is_drawn(tmp_path, seeds, words):
    sections, *_ = _sections(tmp_path, layers=("a", "b"), reductions=("pca", "umap"), alphas=(0.3, 0.5), llms=("x", "y"), seeds=seeds)
    assert [key for key in ("sources", "interactions") if words in sections[key].caption] == ["sources", "interactions"]
    assert ("than the seed does" in sections["interactions"].lead) == (seeds == 3)


def test_what_is_not_drawn_is_said(tmp_path, monkeypatch):
    """A heat map of more layers or alphas than fit, and more panels or pairs than are drawn, say so and where the rest is."""
    for module, name in (
        ("sensitivity", "MOST_ROWS"),
        ("sensitivity", "MOST_COLUMNS"),
        ("sparsity", "MOST_PANELS"),
        ("sources", "MOST_PAIRS"),
    ):
        monkeypatch.setattr(f"llmkt_ray.report.sections.{module}.{name}", 1)
    sections, results, findings = _sections(
        tmp_path, models={"A": 0.2, "B": 0.2}, layers=("a", "b"), alphas=(0.3, 0.5), train_shares=(1.0, 0.1), seeds=2, n_users=30
    )  # fmt: skip
    heat = heat_maps(results, findings).caption
    assert "The first 1 of 4 rows of a map are drawn; the table of alphas holds all." in heat
    assert "The first 1 of 2 alphas of a map are drawn; the table of alphas holds all." in heat
    assert "maps are drawn" not in heat
    assert "The first 1 of 2 datasets \u00d7 models are drawn; the table holds all." in sections["sparsity"].caption
    assert len({figure.title for figure in sections["sparsity"].figures}) == 1
    assert re.search(r"The first 1 of \d pairs are drawn; the table holds all\.", sections["interactions"].caption)


def test_breadth_counts_models_that_gain_lose_and_neither(tmp_path):
    gain = {"A": 0.1, "B": 0.1, "C": -0.1, "D": 0.0}
    sections, *_ = _sections(tmp_path, models=dict.fromkeys(gain, 0.2), treated=lambda model, alpha, layer: gain[model], seeds=5)
    assert "over alpha0, 2 of 4 models gain, 1 loses, 1 cannot be told" in sections["breadth"].lead


def test_the_default_stands_with_its_regret(tmp_path):
    sections, *_ = _sections(
        tmp_path, datasets=("a", "b"), models={"A": 0.2, "B": 0.2}, alphas=(0.3, 0.5, 0.7),
        treated=lambda model, alpha, layer: {0.3: 0.0, 0.5: 0.1, 0.7: 0.02}[alpha],
    )  # fmt: skip
    section = sections["default"]
    assert section.lead.startswith("The default: alpha 0.5.")
    assert [figure.title for figure in section.figures] == ["Each dataset left out", "Each model left out"]
    assert "alphas: [0.5]" in section.items[0][2]


def test_two_reductions_of_one_method_are_two_cells_and_the_default_names_its_settings(tmp_path):
    choices = [{"method": "umap", "dims": 64}, {"method": "umap", "dims": 64, "n_neighbors": 30}]
    far = "umap (n_neighbors 30)"
    sections, results, findings = _sections(
        tmp_path, datasets=("a", "b"), reductions=("umap", far), extra={"reduction": choices},
        moved=lambda spec: 0.1 * (spec.factors["reduction"] == far),
    )  # fmt: skip
    assert [cell.factors["reduction"] for cell in (f.cell for f in findings)] == ["umap", far] * 2
    assert sections["reducers"].items[0][1] == f"{far}: the other is worse."
    made = document(results, findings)
    assert made is not None
    assert made["study"]["reduction"] == {"method": "umap", "n_neighbors": 30}


def test_the_pareto_front_holds_what_nothing_beats_at_both():
    assert pareto([1, 2, 3, 4, 2], [0.1, 0.3, 0.2, 0.4, 0.3]) <= {0, 1, 3, 4}
    assert pareto([1, 2, 3, 4], [0.1, 0.3, 0.2, 0.4]) == {0, 1, 3}
    assert pareto([2, 1], [0.1, 0.2]) == {1}


def test_cost_is_on_the_front_where_it_buys_something(tmp_path):
    sections, *_ = _sections(
        tmp_path, wall=lambda spec: {"treated": 100.0, "template": 50.0}.get(spec.arm, 20.0), references={"Pop": 0.1},
        effects={"baseline": 0.0, "alpha0": 0.0, "shuffled": 0.0, "template": 0.1}, treated=lambda model, alpha, layer: 0.2)  # fmt: skip
    rows = {row[1]: row[5] for row in sections["cost"].tables[0].rows}
    assert rows["MultiVAE on ml-1m, treated, alpha 0.5"] == "yes"  # dearest and best
    assert rows["MultiVAE on ml-1m, template"] == "yes"


def test_every_section_says_units_direction_n_and_what_the_band_means(tmp_path):
    folder = tmp_path / "all"
    sections, *_ = _sections(
        folder, models={"A": 0.2, "B": 0.2, "C": 0.19}, datasets=("a", "b"), llms=("x", "y"), reductions=("pca", "umap"), dims=(8, 64),
        train_shares=(1.0, 0.1), layers=("l1", "l2"), seeds=2, n_users=20, extra={"reduction": [{"method": "pca", "dims": 8}]},
    )  # fmt: skip
    assert {"speed", "reducers", "layers", "llms", "sparsity", "size", "sources", "interactions", "breadth", "default", "cost"} <= set(
        sections
    )
    for section in sections.values():
        assert section.figures
        assert "better" in section.caption, section.key
        assert "n = " in section.caption, section.key
        assert any(word in section.caption for word in ("interval", "No interval")), section.key
    page = build(folder).read_text()
    assert 'id="reducers"' in page
    assert json.loads((folder / "verdict.json").read_text())["answers"]
    assert (folder / "default.yaml").exists()


@pytest.mark.parametrize(("seeds", "words"), [(1, "Inconclusive (1 seed)"), (2, "Inconclusive (2 seeds)")])
def test_few_seeds_are_conditional_and_inconclusive_however_large_the_effect(tmp_path, seeds, words):
    gain = {"pca": 0.5, "umap": 0.0}
    sections, *_ = _sections(
        tmp_path, reductions=tuple(gain), seeds=seeds, moved=lambda spec: gain[spec.factors["reduction"]], train_shares=(1.0, 0.1),
        models=dict.fromkeys("ABC", 0.2),
    )  # fmt: skip
    assert "conditional on these seeds" in sections["reducers"].caption
    _, answer, evidence = sections["reducers"].items[0]
    assert answer == f"{words}: pca: the other is worse."
    assert "conditional on these seeds" in evidence
    assert sections["breadth"].lead.startswith(f"{words}: On ml-1m, over alpha0, ")
    assert f"A on ml-1m: {words.lower()}, " in sections["sparsity"].lead


def test_a_level_with_one_seed_is_not_told_apart_beside_levels_with_more(tmp_path):
    gain = {"pca": 0.1, "umap": 0.0, "tsne": 0.0}
    sections, *_ = _sections(
        tmp_path, reductions=tuple(gain), moved=lambda spec: gain[spec.factors["reduction"]],
        fails=lambda spec: "planted" if spec.arm == "treated" and spec.factors["reduction"] == "tsne" and spec.seed_index else None,
    )  # fmt: skip
    _, answer, evidence = sections["reducers"].items[0]
    assert answer == "pca, inconclusive: worse is only umap; the rest cannot be told apart from it."
    assert evidence.endswith("not all of its seeds and splits finished: tsne.")


def test_sections_on_cells_without_a_verdict_say_so(tmp_path):
    more = {"reductions": ("pca", "umap"), "models": dict.fromkeys("ABC", 0.2)}
    sections, *_ = _sections(tmp_path / "none", is_llm=False, **more)
    assert sections["reducers"].items[0][2].endswith("No verdict on 2 of its 2 cells: no LLM wrote these profiles (gpt-4o-mini).")
    assert sections["breadth"].lead.endswith("No verdict on 6 of its 6 cells: no LLM wrote these profiles (gpt-4o-mini).")
    sections, *_ = _sections(tmp_path / "all", **more)
    assert "No verdict" not in sections["reducers"].items[0][2] + sections["breadth"].lead


def test_levels_of_a_factor_are_corrected_over_all_datasets_and_models_by_statsmodels(tmp_path):
    results = load(write(tmp_path, World(**{**BASE, **FLAT, "models": {"A": 0.2, "B": 0.19}, "reductions": ("pca", "umap", "tsne")})))
    found = compared(results, find(results), "reducer")
    levels = [level for one in found for level in one.levels if level.to_best is not None]
    assert len(levels) == 4
    theirs = multipletests([level.to_best.difference.p for level in levels], method="fdr_bh")[1]
    assert [level.p_to_best for level in levels] == pytest.approx(theirs.tolist())
    assert all("Benjamini-Hochberg over 4 comparisons" in sentence(results, one)[2] for one in found)
