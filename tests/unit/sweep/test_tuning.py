"""Base hyper-parameters: tuned once per dataset and model, on validation, frozen for all arms."""

import io

import pytest
from rich.console import Console

from llmkt_ray.errors import SweepError
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.summary import summarise
from llmkt_ray.study import BudgetConfig
from llmkt_ray.sweep.pipeline import split_nodes
from llmkt_ray.sweep.run import run_study
from llmkt_ray.sweep.tuning import candidates, tuned_models, tuning_specs
from llmkt_ray.training.spec import TrialResult
from tests.tiny import tiny_study

TUNING = {"trials": 5, "ranges": {"learning_rate": (1e-4, 1e-1)}, "choices": {"embedding_size": (4, 8)}}


def value_of(spec):
    """The best learning rate is .02; the treated arm would like another one, which must not matter."""
    wanted = 0.02 if spec.arm == "baseline" else 0.0001
    return max(0.0, 0.5 - abs(spec.learning_rate - wanted))


def stub(spec, artifacts, **_):
    value = value_of(spec)
    return TrialResult(spec=spec, status="done", valid=dict.fromkeys(spec.metrics, value), test=dict.fromkeys(spec.metrics, 1 - value))


def run(study, **settings):
    return run_study(study, executor="loop", console=Console(file=io.StringIO()), run_trial=stub, **settings)


def rows_of(study):
    return Ledger(f"{study.storage}/{study.name}").trials()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    study = tiny_study(tmp_path_factory.mktemp("tuning"), tuning=TUNING, seeds=2)
    run(study)
    return study


def test_every_arm_and_seed_has_the_settings_that_the_plain_model_was_best_with(tuned):
    rows = rows_of(tuned)
    tried = candidates(tuned, "toy", tuned.models[0])
    assert len(tried) == 5
    assert tried[0] == tuned.models[0], "the study's own settings are among those tried"
    best = max(tried, key=lambda model: 0.5 - abs((model.learning_rate or 0.001) - 0.02))
    others = rows[~rows["arm"].isin(["baseline", "reference"])]
    assert set(others["arm"]) == {"alpha0", "shuffled", "treated"}
    assert set(others["learning_rate"]) == {best.learning_rate or 0.001}
    assert others["hyperparameters"].nunique() == 1
    baselines = rows[rows["arm"] == "baseline"]
    assert len(baselines) == 5 + 1, "the trial that won is the baseline of seed 0: nothing is computed twice"


def test_the_choice_is_a_function_of_the_rows_and_a_second_run_does_nothing(tuned):
    before = rows_of(tuned)
    assert run(tuned).ran == 0
    assert len(rows_of(tuned)) == len(before)
    assert candidates(tuned, "toy", tuned.models[0]) == candidates(tuned, "toy", tuned.models[0])
    assert candidates(tuned, "toy", tuned.models[0])[1:] != candidates(tuned, "other", tuned.models[0])[1:]


def test_the_summary_compares_with_the_baseline_of_the_tuned_settings_alone(tuned):
    rows = rows_of(tuned)
    (line, *_), _ = summarise(rows, "NDCG@10", 0.5)
    treated = rows[rows["arm"] == "treated"].iloc[0]
    same = rows[
        (rows["arm"] == "baseline")
        & (rows["learning_rate"] == treated["learning_rate"])
        & (rows["hyperparameters"] == treated["hyperparameters"])
    ]
    assert line.arms["baseline"] == pytest.approx(same["test_NDCG@10"].mean())


def test_test_values_take_no_part(tuned):
    """The stub's test values order the settings the other way round."""
    rows = rows_of(tuned)
    chosen = tuned_models(tuned, split_nodes(tuned), rows)["toy", "BPR"]
    swapped = rows.assign(**{"test_NDCG@10": rows["valid_NDCG@10"]})
    assert tuned_models(tuned, split_nodes(tuned), swapped)["toy", "BPR"] == chosen


def test_a_model_whose_tuning_failed_altogether_is_named(tmp_path):
    study = tiny_study(tmp_path, tuning=TUNING)

    def failing(spec, artifacts, **_):
        raise ValueError("boom")

    with pytest.raises(SweepError, match="none of the 5 settings of BPR on toy has finished"):
        run_study(study, executor="loop", console=Console(file=io.StringIO()), run_trial=failing)


def test_a_limited_run_tunes_first_and_goes_on_later(tmp_path):
    study = tiny_study(tmp_path, tuning=TUNING)
    assert run(study, limit=3).ran == 3
    assert set(rows_of(study)["arm"]) == {"baseline"}
    run(study)
    assert "treated" in set(rows_of(study)["arm"])


def test_candidates_are_trials_of_the_plain_model_that_choose_among_the_arms_epochs(tuned):
    (split,) = split_nodes(tuned)
    specs = [spec for _, specs in tuning_specs(tuned, split, tuned.models[0]) for spec in specs]
    assert {(spec.arm, spec.alpha, spec.targets_key) for spec in specs} == {("baseline", 0.0, None)}
    assert len({spec.key for spec in specs}) == 5


@pytest.mark.parametrize(
    ("varied", "told"),
    [
        ({"ranges": {"batch_size": [16, 100]}}, r"tuning\.ranges\.batch_size: a range holds fractions, batch_size is a whole number"),
        ({"ranges": {"learning_rate": [-1, 1]}}, r"tuning would try learning_rate -1\.0: Input should be greater than 0"),
        ({"ranges": {"weight_decay": [0.1, 0.01]}}, r"tuning\.ranges\.weight_decay must be \[low, high\] with low < high"),
        ({"ranges": {}, "choices": {"epochs": [4, 2.5]}}, r"tuning would try epochs 2\.5: Input should be a valid integer"),
        ({"ranges": {}, "choices": {"batch_size": ["many"]}}, r"tuning would try batch_size 'many': Input should be"),
        ({"choices": {"learning_rate": [0.1]}}, r"a setting has either a range or choices, but \['learning_rate'\] has both"),
    ],
)
def test_settings_that_no_model_could_have_are_refused_with_the_file(tmp_path, varied, told):
    with pytest.raises(ValueError, match=told):
        tiny_study(tmp_path, tuning={"trials": 3, **varied})


def test_one_setting_is_no_tuning(tmp_path):
    with pytest.raises(ValueError, match=r"tuning\.trials 1 tries the study's own settings only"):
        tiny_study(tmp_path, tuning={"trials": 1})


def test_a_trial_that_is_tuned_and_planned_is_one_of_the_budget(tmp_path):
    """The winner's trials are the baselines of the plan: counted twice, a budget left trials out that it had room for."""
    changes = {"seeds": 3, "tuning": {"trials": 2, "seeds": 3}, "evaluation": {"metrics": ["NDCG@10"], "references": []}}
    study = tiny_study(tmp_path, **changes, transfer={"alphas": [0.5]}, budget={"trials": 12})
    summary = run(study)
    assert (summary.done, summary.left_out) == (12, 3), "6 of tuning, 3 of them baselines of the plan, and 6 others"
    again = run(study.model_copy(update={"budget": BudgetConfig(trials=14)}))
    assert (again.ran, again.left_out) == (2, 1)
