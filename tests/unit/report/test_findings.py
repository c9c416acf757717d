"""Cells, contrasts and claims found in results with planted effects."""

from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from llmkt_ray.report.cells import compare, find_cells
from llmkt_ray.report.export import verdict_document
from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import find, flags_of
from llmkt_ray.report.frames import gain_rows
from llmkt_ray.report.load import load
from llmkt_ray.report.sections.alpha import alpha_curves
from llmkt_ray.report.sections.gains import gains
from llmkt_ray.report.sections.references import references as references_section
from llmkt_ray.report.text import plain
from llmkt_ray.report.verdict import verdict
from llmkt_ray.stats.interval import interval
from tests.unit.report.synthetic import World, write

STRONG = World(models={"MultiVAE": 0.2}, seed_sd=0.001, seeds=4, n_users=600, treated=lambda model, alpha, layer: 0.1)


def _found(folder, world, **more):
    results = load(write(folder, world, **more))
    return results, find(results)


def test_a_planted_gain_is_found_and_attributed(tmp_path):
    results, (finding,) = _found(tmp_path, STRONG)
    assert finding.claim.outcome == "worth it"
    assert finding.contrasts["alpha0"].relative.estimate == pytest.approx(0.1, abs=0.03)
    parts = {step.name: step.contrast.difference.estimate for step in finding.steps}
    assert parts["schedule"] + parts["regularisation"] + parts["own profile"] == pytest.approx(parts["in all"])
    assert verdict(results, [finding]).headline == "LLM knowledge works and is worth it for MultiVAE on ml-1m."


def test_a_contrast_is_the_paired_difference_of_the_ledgers_own_rows(tmp_path):
    results, (finding,) = _found(tmp_path, STRONG)
    trials = results.trials
    from llmkt_ray.results.ledger import Ledger

    def table(arm, alpha):
        rows = trials[(trials["arm"] == arm) & (trials["alpha"] == alpha)].sort_values("seed_index")
        return np.stack([Ledger(tmp_path).users(key)["NDCG@10"].to_numpy() for key in rows["trial_key"]])

    mine = finding.contrasts["shuffled"].difference
    theirs = interval(table("treated", 0.5) - table("shuffled", 0.5))
    assert (mine.estimate, mine.low, mine.high) == pytest.approx((theirs.estimate, theirs.low, theirs.high), abs=1e-7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"is_llm": False}, "no LLM wrote these profiles"),
        ({"certificate": "unknown"}, "the leak certificate is unknown"),
        ({"certificate": "leaked"}, "the leak certificate is leaked"),
        ({"converged": lambda model, arm, seed: not (arm == "baseline" and seed == 2)}, "baseline has not converged"),
        ({"converged": lambda model, arm, seed: arm != "alpha0"}, "alpha0 has not converged"),
        (
            {"converged": lambda model, arm, seed: None if arm == "baseline" and seed else True},
            "it is not known whether baseline has converged in 3 of 4 trials",
        ),
        ({"arms": ("baseline", "alpha0", "shuffled")}, "the control 'template' was not run"),
    ],
)
def test_what_forbids_a_verdict_is_said_first(tmp_path, change, words):
    results, findings = _found(tmp_path, World(**{**STRONG.__dict__, **change}))
    said = verdict(results, findings)
    assert said.headline.startswith("No verdict: ")
    assert words in said.headline


def test_a_declared_certificate_is_enough(tmp_path):
    _, (finding,) = _found(tmp_path, World(**{**STRONG.__dict__, "certificate": "declared"}))
    assert finding.claim.outcome == "worth it"


def test_an_unconverged_treated_arm_is_flagged_only(tmp_path):
    late = World(**{**STRONG.__dict__, "converged": lambda model, arm, seed: arm != "treated"})
    _, (finding,) = _found(tmp_path, late)
    assert finding.claim.outcome == "worth it"
    assert any(flag.startswith("not converged: treated at alpha 0.5") for flag in finding.flags)


@pytest.mark.parametrize("control", ["shuffled", "template"])
def test_a_control_that_still_rises_is_not_beaten(tmp_path, control):
    """With more epochs it might do as well: that treated is ahead of it may be speed."""
    late = World(**{**STRONG.__dict__, "converged": lambda model, arm, seed: not (arm == control and seed == 1)})
    results, (finding,) = _found(tmp_path, late)
    assert finding.claim.outcome == "no verdict"
    said = f"No verdict: {control} has not converged: its best epoch is the last one in 1 of 4 trials."
    assert verdict(results, [finding]).headline == said


def test_a_control_that_still_rises_does_not_hide_harm(tmp_path):
    late = {"converged": lambda model, arm, seed: arm not in ("shuffled", "template"), "treated": lambda model, alpha, layer: -0.1}
    _, (finding,) = _found(tmp_path, World(**{**STRONG.__dict__, **late}))
    assert finding.claim.outcome == "hurts"


@pytest.mark.parametrize("gain", [-0.1, 0.0])
def test_a_treated_arm_that_still_rises_is_not_said_to_do_harm_or_nothing(tmp_path, gain):
    """It is behind, or level, so far; where it has converged the same numbers are a verdict."""
    world = {**STRONG.__dict__, "treated": lambda model, alpha, layer: gain, "seed_sd": 0.0, "n_users": 2000}
    late = World(**{**world, "converged": lambda model, arm, seed: not (arm == "treated" and seed == 1)})
    _, (finding,) = _found(tmp_path / "late", late)
    said = "treated has not converged: its best epoch is the last one in 1 of 4 trials"
    assert (finding.claim.outcome, finding.claim.reasons) == ("no verdict", (said,))
    _, (finding,) = _found(tmp_path / "whole", World(**world))
    assert finding.claim.outcome == ("hurts" if gain else "no effect")


def test_two_seeds_are_inconclusive_and_say_why(tmp_path):
    results, findings = _found(tmp_path, World(**{**STRONG.__dict__, "seeds": 2}))
    headline = verdict(results, findings).headline
    assert headline.startswith("Inconclusive: 2 seeds: the intervals are conditional on these seeds")


def test_a_failed_seed_leaves_the_shared_ones_paired(tmp_path):
    world = World(**{**STRONG.__dict__, "fails": lambda spec: "planted" if spec.arm == "shuffled" and spec.seed_index == 1 else None})
    _, (finding,) = _found(tmp_path, world)
    assert finding.contrasts["shuffled"].difference.n_seeds == 3
    assert finding.contrasts["alpha0"].difference.n_seeds == 4


def _uneven(folder):
    """Alpha0 lacks two of four seeds, and of treated at .7 only the best seed finished."""
    world = World(models={"MultiVAE": 0.2}, seeds=4, seed_sd=0.05, alphas=(0.5, 0.7), treated=lambda model, alpha, layer: 0.05, epochs=4)
    gone = {("alpha0", 0.0): (2, 3), ("treated", 0.7): (1, 2, 3)}
    return _found(folder, replace(world, fails=lambda spec: "planted" if spec.seed_index in gone.get((spec.arm, spec.alpha), ()) else None))


def test_levels_of_arms_that_lack_trials_are_those_of_their_contrasts(tmp_path):
    results, (finding,) = _uneven(tmp_path)
    gain = finding.contrasts["alpha0"]
    assert (finding.levels["treated"], finding.levels["alpha0"]) == (gain.mean_arm, gain.mean_control)
    assert {arm: finding.trials[arm] for arm in ("alpha0", "treated", "shuffled")} == {"alpha0": 2, "treated": 2, "shuffled": 4}
    said = "trials differ: alpha0 2 and treated at alpha 0.7 1 of 4; arms are compared on those that both have"
    assert said in finding.flags
    (cell,) = verdict_document(results, [finding], verdict(results, [finding]), (), ())["cells"]
    assert cell["trials"] == finding.trials
    assert said in cell["flags"]
    assert "1 to 4 seeds" not in references_section(results, [finding]).caption  # at the claim's alpha
    assert "2 to 4 seeds" in references_section(results, [finding]).caption


def test_arms_with_the_same_trials_have_no_such_flag(tmp_path):
    _, (finding,) = _found(tmp_path, World(**{**STRONG.__dict__, "n_users": 30}))
    assert not [flag for flag in finding.flags if flag.startswith("trials differ")]
    assert set(finding.trials.values()) == {4}


def test_alphas_are_shown_on_the_seeds_that_their_contrasts_rest_on(tmp_path, monkeypatch):
    drawn = {}
    curves = charts.curves
    monkeypatch.setattr(
        charts, "curves", lambda title, lines, levels, axes: drawn.update(l=lines, a=levels) or curves(title, lines, levels, axes)
    )
    results, (finding,) = _uneven(tmp_path)
    section = alpha_curves(results, [finding])
    rows = {row[1]: row for row in section.tables[0].rows}
    lone = finding.grid[0.7]
    assert rows["0.5"][7:] == ("2", "conditional on these seeds; conditional on one split")
    assert rows["0.7"][7:] == ("1", "conditional on these seeds; conditional on one split")
    assert (rows["0.7"][2], rows["0.7"][4]) == (plain(lone.mean_arm), plain(lone.mean_control))
    line = next(level.value for level in drawn["a"] if level.arm == "alpha0")
    dot = next(dot for series in drawn["l"] if series.arm == "treated" for dot in series.dots if dot.x == 0.7)
    assert line == finding.levels["alpha0"]
    assert dot.y - line == pytest.approx(lone.difference.estimate)
    assert (dot.low <= line <= dot.high) == (lone.difference.low <= 0 <= lone.difference.high)


def test_labelled_rows_are_compared_by_the_users_own_values_everywhere(tmp_path):
    """Over all rows treated is far worse, within the users it is better: the page shows what is compared, and says that the two differ."""
    results = load(write(tmp_path, STRONG))
    results.card["study"]["evaluation"]["protocol"] = "labelled"
    results.trials.loc[results.trials["arm"] == "treated", "test_NDCG@10"] -= 0.1
    (finding,) = find(results)
    gain = finding.contrasts["alpha0"]
    assert finding.levels["treated"] == gain.mean_arm > finding.levels["alpha0"]
    assert gain_rows(results, [finding])["test"].min() > 0
    assert any(flag.startswith("opposite over all rows: NDCG@10 over all rows is 0.1") for flag in finding.flags)
    said = "NDCG@10 over all rows selects; what is compared is the mean of the users' own NDCG@10."
    for section in (alpha_curves(results, [finding]), references_section(results, [finding]), gains(results, [finding])):
        assert said in section.caption
    made = verdict_document(results, [finding], verdict(results, [finding]), (), ())
    assert ["two measures", said] in made["flags"]
    assert alpha_curves(results, [finding]).tables[0].rows[1][2] == plain(finding.grid[0.5].mean_arm)


def test_template_profiles_as_a_level_of_their_own_are_the_template_twin(tmp_path):
    world = World(**{**STRONG.__dict__, "arms": ("baseline", "alpha0", "shuffled"), "llms": ("gpt-4o-mini",)})
    profiles = [{"llm": "template"}, {"llm": "file", "name": "gpt-4o-mini", "path": "gpt.parquet"}]
    world = World(**{**world.__dict__, "llms": ("template", "gpt-4o-mini"), "extra": {"profiles": profiles}})
    _, findings = _found(tmp_path, world)
    by_llm = {f.cell.factors["llm"]: f for f in findings}
    assert "template" in by_llm["gpt-4o-mini"].contrasts
    assert "template" not in by_llm["template"].contrasts


def test_cells_are_told_apart_by_what_varies(tmp_path):
    world = World(layers=("encoder.0", "encoder.1"), datasets=("ml-100k", "ml-1m"), seeds=1, n_users=20, epochs=4)
    cells = find_cells(load(write(tmp_path, world)))
    assert len(cells) == 8
    assert cells[0].detail == "layer encoder.0"
    assert len({cell.label for cell in cells}) == 8


def test_several_splits_are_pooled(tmp_path):
    _, (finding,) = _found(tmp_path, World(**{**STRONG.__dict__, "splits": 3}))
    contrast = finding.contrasts["alpha0"]
    assert contrast.n_splits == 3
    assert contrast.conditions == ()


def test_p_values_are_corrected_over_the_whole_study_by_statsmodels(tmp_path):
    """Not cell by cell: Holm over the planned contrasts of all cells, and over the parts, Benjamini-Hochberg over the grids of all."""
    _, findings = _found(tmp_path, World(seeds=3, n_users=100, models={"MultiVAE": 0.21, "SimpleX": 0.17}))
    assert len(findings) == 2
    families = [
        ("holm", lambda f: f.contrasts, lambda f: f.holm),
        ("holm", lambda f: {step.name: step.contrast for step in f.steps}, lambda f: f.steps_holm),
        ("fdr_bh", lambda f: f.grid, lambda f: f.grid_bh),
    ]
    for method, contrasts, adjusted in families:
        raw = [c.difference.p for f in findings for c in contrasts(f).values()]
        mine = [adjusted(f)[name] for f in findings for name in contrasts(f)]
        assert len(mine) >= 6
        assert mine == pytest.approx(multipletests(raw, method=method)[1].tolist())


def test_an_arm_that_has_not_run_has_no_contrast(tmp_path):
    results = load(write(tmp_path, STRONG, keep=lambda spec: spec.arm != "alpha0"))
    (cell,) = find_cells(results)
    assert compare(results, cell, 0.5, "alpha0") is None


@pytest.mark.parametrize(
    ("references", "treated", "words"),
    [
        ({"Pop": 0.09, "EASE": 0.1}, 0.1, "Every treated model is at or above EASE."),
        ({"Pop": 0.09, "EASE": 0.3}, 0.1, "Below EASE even when treated: MultiVAE on ml-1m."),
        ({"Pop": 0.09}, 0.1, "No treated model can be compared with EASE yet; of the references Pop finished."),
        ({}, 0.1, "No reference lines were run"),
    ],
)
def test_models_stand_beside_ease(tmp_path, references, treated, words):
    world = World(**{**STRONG.__dict__, "references": references, "treated": lambda model, alpha, layer: treated})
    results, findings = _found(tmp_path, world)
    assert references_section(results, findings).lead.startswith(words)
    assert any(flag.startswith("below EASE") for flag in findings[0].flags) == (references.get("EASE", 0) > 0.2)


def test_a_cell_that_is_not_treated_yet_is_not_above_ease(tmp_path):
    """One model's treated trials at the claim's alpha have not finished: nothing is said of it, and that is said."""
    world = World(seeds=1, n_users=40, epochs=4, references={"EASE": 0.05})
    results, findings = _found(tmp_path, world, keep=lambda s: (s.model, s.arm, s.alpha) != ("SimpleX", "treated", 0.5))
    assert references_section(results, findings).lead == "Every treated model is at or above EASE. 1 cell could not be compared with it."


@pytest.mark.parametrize(
    ("alignment", "model", "flagged"),
    [
        ("pair", "MultiVAE", "pair-level: the tapped layer encoder.1 depends on the item"),
        ("sequence", "MultiVAE", "sequential: a history's every prefix is taught a profile written from all of it"),
        ("user_rows", "NPE", "sequential: "),
        ("user_item_table", "MultiVAE", None),
        ("user_rows", "MultiVAE", None),
    ],
)
def test_what_a_layers_rows_stand_for_is_marked(tmp_path, alignment, model, flagged):
    """Pair-level taps, and sequential models, whose prefixes are taught a profile that knows their future (METHOD.md, section 5)."""
    results, (finding,) = _found(tmp_path, STRONG)
    factors = finding.cell.factors | {"model": model, "layer": "encoder.1"}
    others = [
        {"model": "Other", "layer": "encoder.1", "alignment": "pair"},
        {"model": model, "layer": "encoder.0", "alignment": "sequence"},
    ]
    card = results.card | {"cells": [{"model": model, "layer": "encoder.1", "alignment": alignment}, *others]}
    flags = flags_of(replace(results, card=card), replace(finding.cell, factors=factors), {})
    marks = [flag for flag in flags if flag.startswith(("pair-level", "sequential"))]
    assert [mark.startswith(flagged or "?") for mark in marks] == ([True] if flagged else [])
