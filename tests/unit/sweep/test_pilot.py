"""A pilot runs the most telling trials first, stops when its budget is spent, and goes on where it stopped."""

import io

import pytest
from rich.console import Console

from llmkt_ray.errors import StudyError
from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study import BudgetConfig, ResourcesConfig
from llmkt_ray.study_file import parse_study
from llmkt_ray.sweep.pilot import Meter, telling_first
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.run import run_study, store_of
from tests.tiny import tiny_study

QUIET = Console(file=io.StringIO())
WIDE = {
    "models": [{"name": "BPR", "epochs": 4, "hyperparameters": {"embedding_size": 8}}, {"name": "DMF", "epochs": 4}],
    "reduction": [{"method": "pca"}, {"method": "random_projection"}],
    "embedding": {"encoder": "tfidf_svd", "dims": 64},
    "transfer": {"alphas": (0.3, 0.5)},
    "controls": ("baseline", "alpha0", "shuffled"),
    "seeds": 2,
}


def test_the_claim_of_every_model_comes_before_other_levels_and_those_before_other_alphas(tmp_path):
    study = tiny_study(tmp_path, **WIDE)
    plan = make_plan(study, store_of(study))
    ordered = telling_first(plan.trials, study.transfer)
    assert {spec.key for spec in ordered} == {spec.key for spec in plan.trials}
    told = [(spec.seed_index, spec.model, spec.arm, spec.factors.get("reduction")) for spec in ordered[:16]]
    arms = [("treated", "pca"), ("alpha0", None), ("shuffled", "pca"), ("baseline", None)]
    assert told == [(seed, model, arm, reduction) for seed in (0, 1) for model in ("BPR", "DMF") for arm, reduction in arms]
    assert all(spec.alpha in (0, 0.5) for spec in ordered[:-8])
    assert all(spec.alpha == 0.3 for spec in ordered[-8:])
    assert telling_first(tuple(reversed(ordered)), study.transfer)[:1] != (), "any order is accepted"


@pytest.mark.parametrize(("budget", "ran"), [({"trials": 4}, 4), ({"hours": 1e-9}, 0), ({"money": 1e-9}, 1)])
def test_a_run_stops_at_its_budget_and_goes_on_with_a_larger_one(tmp_path, budget, ran):
    prices = {"resources": {"cpu_hour": 1.0}}
    study = tiny_study(tmp_path, budget=budget, **prices)
    first = run_study(study, executor="loop", console=QUIET)
    assert (first.ran, first.failed, first.left_out) == (ran, 0, 6 - ran)
    assert bool(first.stopped) == ("trials" not in budget)
    again = run_study(study, executor="loop", console=QUIET)
    assert again.ran == 0, "the same budget is spent"
    whole = tiny_study(tmp_path, **prices)
    assert whole.key == study.key, "a budget does not change the study"
    rest = run_study(whole, executor="loop", console=QUIET)
    assert (rest.ran, rest.left_out, rest.stopped) == (6 - ran, 0, None)
    assert len(Ledger(study_folder(whole)).trials()) == 6


def test_a_budget_that_suffices_leaves_nothing_out_where_settings_are_tuned(tmp_path):
    """Tuned trials have other keys than those that were planned before the tuning."""
    tuned = {"tuning": {"trials": 2, "ranges": {"learning_rate": (0.002, 0.02)}}}
    first = run_study(tiny_study(tmp_path, budget={"trials": 3}, **tuned), executor="loop", console=QUIET)
    assert (first.ran, first.left_out) == (3, 4), "of seven: the baseline is the first of the two settings that are tried"
    rest = run_study(tiny_study(tmp_path, budget={"trials": 100}, **tuned), executor="loop", console=QUIET)
    assert rest.left_out == 0
    assert rest.done == len(Ledger(rest.folder).trials())


def test_money_without_a_price_is_refused():
    with pytest.raises(StudyError, match=r"budget\.money needs a price: give `resources\.cpu_hour`"):
        parse_study("name: a\ndatasets: [ml-100k]\nmodels: [BPR]\nbudget: {money: 5}\n")


def test_earlier_runs_and_profiles_count_as_spent_money():
    resources = ResourcesConfig.model_validate({"trial": {"cpus": 2, "gpus": 0.5}, "cpu_hour": 0.1, "gpu_hour": 2})
    meter = Meter(BudgetConfig(money=3.0), resources, spent_s=3600, extra=1.0)
    assert meter.money() == pytest.approx(2 * 0.1 + 0.5 * 2 + 1.0)
    assert meter.spent() is None
    assert Meter(BudgetConfig(money=2.0), resources, spent_s=3600, extra=1.0).spent() == "the budget of 2 (spent 2.20)"
