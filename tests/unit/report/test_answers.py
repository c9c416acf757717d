"""Answers and diagnoses in results whose truth is planted."""

import re
from dataclasses import replace

import numpy as np
import pytest
import yaml

from llmkt_ray.report.answers import answers, factor_importance
from llmkt_ray.report.default import default_of, document, layer_places
from llmkt_ray.report.diagnosis import diagnose, why_no_gain
from llmkt_ray.report.evidence import Evidence
from llmkt_ray.report.findings import find
from llmkt_ray.report.frames import gain_rows
from llmkt_ray.report.levels import compared, sentence
from llmkt_ray.report.load import load
from llmkt_ray.report.sections.regret import regret_section
from llmkt_ray.report.sections.sensitivity import importance_section
from llmkt_ray.report.winner import find_trial
from llmkt_ray.stats.contrast import contrast
from llmkt_ray.stats.power import seeds_needed, smallest_detectable
from llmkt_ray.study import StudyConfig
from tests.unit.report.synthetic import World, study_of, write

ALPHA = {0.1: 0.0, 0.3: 0.05, 0.5: 0.1, 0.7: 0.1, 0.9: 0.0}


def _gain(model, alpha, layer):
    return ALPHA[alpha] * (1.0 if layer == "encoder.1" else 0.4)


GRID = World(
    models={"MultiVAE": 0.2, "SimpleX": 0.17}, datasets=("ml-100k", "ml-1m"), layers=("encoder.0", "encoder.1"),
    alphas=tuple(ALPHA), treated=_gain, seeds=3, n_users=300, epochs=4, seed_sd=0.001,
)  # fmt: skip


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    results = load(write(tmp_path_factory.mktemp("grid"), GRID))
    return results, find(results)


@pytest.fixture(scope="module")
def shares(grid):
    return factor_importance(*grid)


@pytest.fixture(scope="module")
def said(grid, shares):
    return {(a.topic, a.subject): a for a in answers(*grid, shares)}


def test_the_planted_best_is_found(said):
    found = said["Best configuration", "MultiVAE on ml-1m"]
    assert found.answer.startswith(("alpha 0.5, layer encoder.1", "alpha 0.7, layer encoder.1"))
    assert "of 10 configurations" in found.evidence


def test_the_planted_layer_is_found(said):
    found = said["Best layer", "SimpleX on ml-1m"]
    assert found.answer == "encoder.1: the other is worse."
    assert "3 seeds" in found.evidence


def _said(folder, **more):
    """Answers in a small study, by topic."""
    results = load(write(folder, World(**{**BASE, "epochs": 4, "treated": lambda m, a, la: 0.1, **more})))
    findings = find(results)
    return {a.topic: a for a in answers(results, findings, factor_importance(results, findings))}


AXES = {"datasets": ("ml-100k", "ml-1m"), "layers": ("encoder.0", "encoder.1"), "alphas": (0.3, 0.5)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"is_llm": False}, "no LLM wrote these profiles"),
        ({"certificate": "unknown"}, "the leak certificate is unknown"),
        ({"converged": lambda model, arm, seed: arm != "alpha0"}, "alpha0 has not converged"),
        ({"arms": ("baseline", "alpha0")}, "the control 'shuffled' was not run"),
    ],
)
def test_an_answer_says_itself_that_there_is_no_verdict_on_its_cells(tmp_path, change, words):
    found = _said(tmp_path, **AXES, **change)
    chosen = {"Best configuration", "Safe alphas", "Best layer", "Largest gain", "Default"}
    assert chosen <= set(found)
    for topic in chosen:
        assert re.search(rf"No verdict on (it|\d of its \d cells): .*{re.escape(words)}", found[topic].evidence), topic


def test_answers_on_cells_with_a_verdict_add_nothing(tmp_path):
    assert not [a.topic for a in _said(tmp_path, **AXES).values() if "No verdict" in a.evidence]


@pytest.mark.parametrize(
    ("seeds", "words"), [(1, "conditional on these seeds and conditional on one split"), (3, "conditional on one split")]
)
def test_the_gain_of_the_best_configuration_says_what_it_is_conditional_on(tmp_path, seeds, words):
    found = _said(tmp_path, seeds=seeds)["Best configuration"]
    assert re.search(rf"test gain over alpha0 \S+\u202f% \[.*\], {words}\.", found.evidence)


LUCKY = {"seeds": 3, "seed_sd": 0.05, "alphas": (0.3, 0.5), "reductions": ("pca", "umap")}


def _only_the_lucky_seed(folder):
    """Pca at .5 is far worse than all else; only the seed on which everything is at its highest finished it."""
    drop = lambda spec: -0.04 if (spec.factors.get("reduction"), spec.alpha) == ("pca", 0.5) else 0.0  # noqa: E731
    world = World(**{**BASE, **LUCKY, "epochs": 4, "treated": lambda m, a, la: 0.05, "moved": drop})
    trials = load(write(folder / "whole", world)).trials
    plain = trials[trials["arm"] == "alpha0"].set_index("seed_index")["valid_NDCG@10"]
    gone = lambda s: s.arm == "treated" and s.factors["reduction"] == "pca" and s.alpha == 0.5 and s.seed_index != plain.idxmax()  # noqa: E731
    lucky = plain.max() * 1.01  # of its mean, and still the highest
    assert lucky > plain.mean() * 1.05
    return write(folder / "lucky", replace(world, fails=lambda spec: "planted" if gone(spec) else None))


def test_a_configuration_of_which_only_the_lucky_seed_finished_is_not_the_best(tmp_path):
    folder = _only_the_lucky_seed(tmp_path)
    results = load(folder)
    findings = find(results)
    made = {(a.topic, a.subject): a for a in answers(results, findings, {})}
    best = made["Best configuration", "MultiVAE on ml-1m"]
    assert not best.answer.startswith("alpha 0.5, reducer pca")
    said = "Left out of the choice, because not all of its seeds and splits finished: alpha 0.5, reducer pca."
    assert "of 3 configurations" in best.evidence
    assert said in best.evidence
    safe = made["Safe alphas", "MultiVAE on ml-1m (reducer pca)"]
    assert "to alpha 0.3 (the best on validation)" in safe.evidence
    assert "Left out of the choice, because not all of its seeds and splits finished: alpha 0.5." in safe.evidence
    (one,) = compared(results, findings, "reducer")
    assert one.levels[one.best].values == ("umap",)
    assert sentence(results, one)[2].endswith("Left out of the choice, because not all of its seeds and splits finished: pca.")
    spec, row = find_trial("best", folder)
    assert (row["reduction"], spec.alpha) != ("pca", 0.5)


@pytest.mark.parametrize(("seeds", "words"), [(1, "Inconclusive (1 seed): "), (2, "Inconclusive (2 seeds): ")])
def test_below_three_seeds_the_best_and_the_safe_alphas_are_inconclusive(tmp_path, seeds, words):
    found = _said(tmp_path, seeds=seeds, alphas=(0.5, 0.7), n_users=6000, seed_sd=0.0)
    assert re.fullmatch(re.escape(words) + r"alpha 0\.[57]\.", found["Best configuration"].answer)
    assert re.match(re.escape(words) + "(0.5 to 0.7|only 0.[57])", found["Safe alphas"].answer)


def test_the_importance_names_the_trials_that_it_used(tmp_path, monkeypatch):
    monkeypatch.setattr("llmkt_ray.stats.importance.MOST_ROWS", 10)
    results = load(write(tmp_path, World(**{**BASE, "alphas": (0.3, 0.5, 0.7), "epochs": 4})))
    section = importance_section(results, factor_importance(results, find(results)), {})
    assert section.caption.endswith("n = 10 of 12 treated trials, a seeded sample.")


def test_layers_that_do_equally_well_are_inconclusive(tmp_path):
    world = World(**{**BASE, "layers": ("encoder.0", "encoder.1"), "treated": lambda m, a, la: 0.1, "epochs": 4})
    results = load(write(tmp_path, world))
    (found,) = [a for a in answers(results, find(results), {}) if a.topic == "Best layer"]
    assert found.answer.startswith("Inconclusive: ")


def test_alpha_and_layer_matter_more_than_the_seed(shares, said):
    assert next(iter(shares)) == "alpha"
    assert shares["alpha"] > 5 * shares["seed"]
    assert "Alpha" in said["What matters most", "all"].answer


def test_what_matters_is_inconclusive_where_nothing_is_above_the_seed_or_there_is_one_seed_only(tmp_path):
    nothing = _said(tmp_path / "noise", seeds=6, alphas=(0.3, 0.5), seed_sd=0.05, treated=lambda m, a, la: 0.0)["What matters most"]
    assert nothing.answer.startswith("Nothing that was varied: every factor is below the noise floor")
    world = World(**{**BASE, **AXES, "epochs": 4, "seeds": 1})
    results = load(write(tmp_path / "one", world))
    findings = find(results)
    shares = factor_importance(results, findings)
    one = {a.topic: a for a in answers(results, findings, shares)}["What matters most"]
    assert one.answer.startswith("Inconclusive: all trials have one seed")
    section = importance_section(results, shares, {})
    assert section.lead.startswith("Inconclusive")
    assert "Dotted line" not in section.caption


def test_the_largest_gain_names_its_conditions_and_the_search(said):
    found = said["Largest gain", "all"]
    assert "that did not choose it" in found.answer
    assert "40 configurations searched in 8 cells" in found.evidence
    assert "Conditions: " in found.evidence
    assert "layer encoder.1" in found.evidence
    assert "[" in found.answer  # an interval on the other seeds


def test_one_default_judged_by_leaving_out_a_dataset_then_a_model(grid, said):
    found, settings = default_of(*grid)
    assert settings["layer"] == 2
    assert settings["alpha"] in (0.5, 0.7)
    assert {one.what for one in found.by_dataset} == {"ml-100k", "ml-1m"}
    assert {one.what for one in found.by_model} == {"MultiVAE", "SimpleX"}
    assert found.worst.regret < 0.05
    answer = said["Default", "all"].answer
    assert found.config in answer
    assert "without a dataset" in answer
    assert "without a model" in answer


def test_the_default_is_a_part_of_a_study_file(grid):
    results, findings = grid
    made = document(results, findings)
    assert made["study"]["transfer"]["layers"] == {"MultiVAE": ["encoder.1"], "SimpleX": ["encoder.1"]}
    assert made["worst_test_regret"] < 0.05
    study = {**study_of(GRID).model_dump(mode="json"), **yaml.safe_load(yaml.safe_dump(made["study"]))}
    assert StudyConfig.model_validate(study).transfer.alphas == (made["default"]["alpha"],)


def test_layers_count_in_the_order_of_the_plan_not_of_their_names(tmp_path):
    """`user_embedding` comes before `mlp.3` and `mlp.12` in the model, after them in the alphabet; `mlp.3` has no row yet."""
    layers = ("user_embedding", "mlp.3", "mlp.12")
    more = {"models": {"NeuMF": 0.2, "BPR": 0.2}, "layers": layers, "treated": lambda m, a, la: 0.1 if la == "mlp.12" else 0.01}
    results = load(write(tmp_path, World(**{**BASE, **more, "epochs": 4}), keep=lambda spec: spec.layer != "mlp.3"))
    results.card["cells"] = [{"dataset": "ml-1m", "model": model, "layer": layer} for model in more["models"] for layer in layers]
    findings = find(results)
    made = document(results, findings)
    assert made["default"]["layer"] == 3
    assert made["study"]["transfer"]["layers"] == {"NeuMF": ["mlp.12"], "BPR": ["mlp.12"]}
    assert [f.cell.factors["layer"] for f in findings] == ["user_embedding", "mlp.12"] * 2
    assert list(layer_places(replace(results, card={}), [f.cell for f in findings]).values()) == [1, 2] * 2


def test_a_default_that_is_worse_than_no_transfer_is_not_recommended(tmp_path):
    world = World(**{**BASE, **AXES, "epochs": 4, "treated": lambda m, a, la: -0.1})
    results = load(write(tmp_path, world))
    findings = find(results)
    found = {a.topic: a.answer for a in answers(results, findings, {})}["Default"]
    assert found.startswith("No: without transfer is better on validation than every configuration")
    assert document(results, findings)["recommended"] is False
    assert regret_section(results, findings).lead.startswith("None is better than no transfer; the best: ")


def test_the_safe_range_is_that_of_the_planted_curve(tmp_path):
    """.5 and .7 are equally good, .3 is 5 % below: safe is what is shown to be within 1 %, next to the best."""
    found = _said(tmp_path, alphas=tuple(ALPHA), treated=_gain, layers=("encoder.1",), n_users=6000, seed_sd=0.0)["Safe alphas"]
    assert found.answer == "0.5 to 0.7."
    assert re.search(r"alpha 0\.3 \u2212\d\.\d\u202f% \[", found.evidence)
    assert "is at least \u22121\u202f%" in found.evidence
    assert "conditional on one split" in found.evidence


def test_the_safe_range_ends_at_an_alpha_whose_trials_all_failed(tmp_path):
    more = {"alphas": tuple(ALPHA), "n_users": 6000, "seed_sd": 0.0, "treated": lambda m, a, la: 0.06 if a == 0.7 else 0.058}
    found = _said(tmp_path, **more, fails=lambda s: "the loss is NaN" if s.arm == "treated" and s.alpha == 0.3 else None)["Safe alphas"]
    assert found.answer == "0.5 to 0.9."
    assert "; alpha 0.3 did not finish; conditional on one split." in found.evidence


def test_alphas_that_cannot_be_shown_to_be_safe_are_inconclusive(tmp_path):
    found = _said(tmp_path, alphas=(0.3, 0.5, 0.7), seed_sd=0.05, n_users=30)["Safe alphas"]
    assert re.match(r"Inconclusive: only 0\.\d itself, no neighbour is shown to be within 1% of it\.", found.answer)


def test_the_best_configuration_that_gains_nothing_is_inconclusive(tmp_path):
    found = _said(tmp_path, treated=lambda m, a, la: 0.0, seed_sd=0.02, n_users=60)["Best configuration"]
    assert found.answer == "alpha 0.5: inconclusive, it cannot be told apart from alpha0."


def test_the_best_configuration_of_a_transfer_that_hurts_is_not_offered_as_an_answer(tmp_path):
    found = _said(tmp_path, treated=lambda m, a, la: -0.1)["Best configuration"]
    assert found.answer == "alpha 0.5 of those with transfer, but alpha0, without it, is better."


def test_with_one_seed_nothing_is_left_of_the_largest_gain_and_the_power_is_unknown(tmp_path):
    found = _said(tmp_path, seeds=1)
    assert "There are no other seeds to judge it on, so nothing is left to claim." in found["Largest gain"].answer
    assert found["Power"].answer == "Unknown: with one seed the noise between seeds cannot be estimated."


def test_power_is_stated_in_seeds_and_percent(said):
    power = said["Power", "all"].answer
    assert power.startswith("With 3 seeds effects under ")
    assert "would resolve 3%" in power


def test_the_power_of_cells_that_differ_is_that_of_one_of_them(tmp_path):
    """One model is a tenth as noisy as the other: the effect that is named is what the named numbers of seeds come from."""
    noise = {"MultiVAE": 0.0, "SimpleX": 0.04}
    moved = lambda spec: float(np.random.default_rng([spec.seed_index, len(spec.model)]).normal(0, noise[spec.model]))  # noqa: E731
    results = load(write(tmp_path, World(**{**BASE, "models": {"MultiVAE": 0.2, "SimpleX": 0.2}, "epochs": 4, "moved": moved})))
    findings = find(results)
    parts = [f.contrasts["alpha0"] for f in findings]
    smallest = [smallest_detectable(c.components, 4, c.difference.n_users) for c in parts]
    said = next(a.answer for a in answers(results, findings, {}) if a.topic == "Power")
    assert max(smallest) > 2 * min(smallest)
    assert said.startswith(f"With 4 seeds effects under {max(smallest):.1%} over alpha0 cannot be resolved here")
    needed = seeds_needed(parts[int(np.argmax(smallest))].components, 200, 0.05)
    assert needed is not None
    assert f"{needed} seeds would resolve 5%" in said


def test_over_splits_the_power_is_that_of_the_splits(tmp_path):
    found = _said(tmp_path, splits=3, seeds=2)["Power"]
    assert found.answer.startswith("With 3 splits effects under ")
    assert "splits would resolve 5%" in found.answer or "splits resolves 5%" in found.answer
    assert "split-level degrees of freedom" in found.evidence


def test_where_the_seeds_of_all_splits_decide_the_power_is_that_of_seeds(tmp_path):
    """A seed moves the gain alike in every split: more splits would not help, and the page does not say that they would."""
    shift = {0: -0.06, 1: 0.0, 2: 0.06}
    found = _said(tmp_path, splits=3, seeds=3, models={"BPR": 0.2}, moved=lambda spec: shift[spec.seed_index])["Power"]
    assert found.answer.startswith("With 3 seeds on 3 splits effects under ")
    assert "split" not in found.answer.partition(";")[2]
    assert "seed-level degrees of freedom" in found.evidence


def test_gains_are_those_of_the_same_seed(grid):
    results, findings = grid
    rows = gain_rows(results, findings)
    one = rows.iloc[0]
    cell = findings[int(one["cell"]) - 1].cell
    column = results.trials["test_NDCG@10"]
    at = (int(one["split"]), int(one["seed"]))
    treated, alpha0 = column.iloc[cell.treated[one["alpha"]].rows[at]], column.iloc[cell.controls["alpha0"].rows[at]]
    assert one["test"] == pytest.approx(treated / alpha0 - 1)


BASE = {"models": {"MultiVAE": 0.2}, "seeds": 4, "n_users": 200, "alphas": (0.5,), "seed_sd": 0.001}


def _diagnose(folder, **more):
    results = load(write(folder, World(**{**BASE, **more})))
    return diagnose(results, find(results))


@pytest.mark.parametrize(
    ("seeds", "words"), [(2, "(conditional on these seeds and conditional on one split)"), (4, "(conditional on one split)")]
)
def test_a_diagnosis_says_what_its_interval_is_conditional_on(tmp_path, seeds, words):
    found = {one.signature: one for one in _diagnose(tmp_path, treated=lambda m, a, la: -0.15, seeds=seeds)}
    assert f" over alpha0 {words}; " in found["degraded baseline"].evidence


def test_no_gain_from_a_weak_transfer(tmp_path):
    (found,) = _diagnose(tmp_path, treated=lambda m, a, la: 0.0, gradient_ratio=0.01)
    assert found.signature == "no gain"
    assert found.cause.startswith("weight")
    assert "larger alpha" in found.remedy


def test_no_gain_from_targets_that_lost_the_neighbours(tmp_path):
    (found,) = _diagnose(tmp_path, treated=lambda m, a, la: 0.0, knn_overlap=0.05)
    assert found.cause.startswith("profile quality")
    assert "kNN overlap 0.05" in found.evidence


def test_no_gain_because_any_profile_does(tmp_path):
    effects = {"baseline": 0.0, "alpha0": 0.0, "shuffled": 0.0, "template": 0.0}
    (found,) = _diagnose(tmp_path, treated=lambda m, a, la: 0.0, effects=effects, n_users=2000, seed_sd=0.0005)
    assert found.cause.startswith("alignment or content")


def test_no_gain_in_a_study_that_is_too_small_is_not_known_yet(tmp_path):
    effects = {"baseline": 0.0, "alpha0": 0.0, "shuffled": 0.0, "template": 0.0}
    (found,) = _diagnose(tmp_path, treated=lambda m, a, la: 0.0, effects=effects, n_users=30, seed_sd=0.05)
    assert found.cause.startswith("not known yet")
    assert "more seeds" in found.remedy


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        ({"near_duplicates": 0.6}, "60% of the profiles are near-duplicates"),
        ({"flagged": 0.4}, "40% of the profiles are flagged"),
        ({"kinds": {"precision": 0.9, "recall": 0.1, "f1": 0.2}}, "profiles name 10% of what their users watch most"),
    ],
)
def test_no_gain_from_profiles_that_cannot_tell_users_apart(tmp_path, quality, words):
    (found,) = _diagnose(tmp_path, treated=lambda m, a, la: 0.0, profile_notes={"quality": quality})
    assert found.cause == f"profile quality: {words}" or found.cause.startswith(f"profile quality: {words} (")
    assert "look at the texts" in found.remedy


def test_a_degraded_baseline_from_overfitting_to_the_pretext_task(tmp_path):
    (found,) = _diagnose(tmp_path, treated=lambda m, a, la: -0.15, gradient_ratio=6.0, curve=_dip)
    assert found.signature == "degraded baseline"
    assert "pretext task" in found.cause
    assert "gradient ratio 6" in found.evidence


def _dip(spec, epoch, value):
    return value * 0.5 if spec.arm == "treated" and epoch <= 10 else value / 0.85 if spec.arm == "treated" else value


def test_slow_convergence(tmp_path):
    (found,) = _diagnose(tmp_path, treated=lambda m, a, la: 0.1, curve=_slow)
    assert found.signature == "slow convergence"
    assert "treated 19, alpha0 8" in found.evidence
    assert found.cause == "noisy or misaligned embeddings"


def test_a_pair_level_layer_is_named_and_a_users_own_is_not():
    nan = float("nan")
    known = Evidence({}, nan, 0.5, 0.6, 0.6, 0.0, 0.0, 0.6, "pair")
    gain = contrast(np.ones((3, 9)) + np.eye(3, 9) * 1e-9, np.ones((3, 9)))
    assert why_no_gain(known, None, gain, 0.02)[0].startswith("alignment: ")
    for alignment in ("user_rows", "user_table", "user_item_table", ""):
        assert not why_no_gain(replace(known, alignment=alignment), None, gain, 0.02)[0].startswith("alignment: ")


def test_slow_convergence_whoever_the_profile_is_of(tmp_path):
    (found,) = _diagnose(tmp_path, treated=lambda m, a, la: 0.1, curve=lambda s, e, v: _slow(s, e, v, ("treated", "shuffled")))
    assert found.cause == "noisy or misaligned embeddings: another user's profile slows it as much"


def test_slow_convergence_from_a_transfer_that_outweighs_the_model(tmp_path):
    (found,) = _diagnose(tmp_path, treated=lambda m, a, la: 0.1, curve=_slow, gradient_ratio=5.0)
    assert found.cause.startswith("weight: ")


def _slow(spec, epoch, value, arms=("treated",)):
    return 0.2 * epoch / 20 if spec.arm in arms else 0.2 * min(epoch / 8, 1)


def test_a_healthy_cell_has_no_signature(tmp_path):
    assert _diagnose(tmp_path, treated=lambda m, a, la: 0.1) == ()
