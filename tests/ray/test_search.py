"""A search is as reproducible as a grid: by executor, by crash, and its told states are true."""

import io

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from rich.console import Console

from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.sweep.run import run_study
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from tests.tiny import tiny_study

pytestmark = pytest.mark.ray


def curve(spec: TrialSpec, artifacts: TrialArtifacts, **_: object) -> TrialResult:
    """A known response to alpha, with noise by seed; a failure and a NaN at its ends."""
    if spec.alpha > 0.9:
        raise ValueError("too strong")
    value = float("nan") if 0 < spec.alpha < 0.1 else 1 - (spec.alpha - 0.4) ** 2 + 0.01 * spec.seed_index
    return TrialResult(spec=spec, status="done", valid={spec.select_on: value}, test={spec.select_on: value}, best_epoch=3)


def searching(root, **search):
    settings = {"kind": "optuna", "trials": 10, "round_size": 3} | search
    return tiny_study(root, search=settings, seeds=2, evaluation={"metrics": ["NDCG@10"], "references": []}, controls=["alpha0"])


def run(study, executor="loop", **settings):
    return run_study(study, executor=executor, console=Console(file=io.StringIO()), run_trial=curve, **settings)


def numbers(study) -> pd.DataFrame:
    return Ledger(study_folder(study)).trials().drop(columns=[*MEASUREMENT_COLUMNS, "study_key"])


def optuna_trials(study):
    backend = optuna.storages.journal.JournalFileBackend(f"{study_folder(study)}/search/journal.log")
    storage = optuna.storages.JournalStorage(backend)
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_search_gives_the_same_rows_on_both_executors(tmp_path, executor, sampler):
    study = searching(tmp_path / executor, sampler=sampler)
    run(study, executor)
    plain = searching(tmp_path / "plain", sampler=sampler)
    run(plain)
    pd.testing.assert_frame_equal(numbers(study), numbers(plain), check_exact=True)
    treated = numbers(study).query("arm == 'treated'")
    assert len(treated) == 20, "ten suggestions over two seeds, a row each"
    assert treated["alpha"].nunique() == 10
    assert 0.5 in set(treated["alpha"]), "the claim's alpha is tried first"


def test_told_states_are_true(tmp_path):
    study = searching(tmp_path, trials=14, sampler="random", alpha=(0.0, 1.0))
    run(study)
    rows = numbers(study).set_index("trial_key")
    trials = optuna_trials(study)
    assert len(trials) == 14
    seen = set()
    for trial in trials:
        alpha = trial.params["alpha"]
        expected = TrialState.FAIL if alpha > 0.9 or 0 < alpha < 0.1 else TrialState.COMPLETE
        assert trial.state == expected
        seen.add(trial.state)
        if expected == TrialState.COMPLETE:
            values = rows.loc[trial.user_attrs["trial_keys"], "valid_NDCG@10"]
            np.testing.assert_allclose(trial.value, values.mean())
    assert seen == {TrialState.FAIL, TrialState.COMPLETE}, "the test met both"


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, sampler):
    whole = searching(tmp_path / "whole", sampler=sampler)
    run(whole)
    study = searching(tmp_path / "cut", sampler=sampler)
    run(study)
    folder = tmp_path / "cut" / "results" / "tiny"
    for path in sorted((folder / "ledger" / "suggestions").iterdir())[2:]:
        path.unlink()
    for path in sorted((folder / "ledger" / "trials").iterdir())[::2]:
        path.unlink()
    assert run(study).ran > 0
    pd.testing.assert_frame_equal(numbers(study), numbers(whole), check_exact=True)
    assert len(optuna_trials(study)) == 10, "none told twice"


def test_tpe_finds_the_top_of_a_known_curve(tmp_path):
    study = searching(tmp_path, trials=24, round_size=4)
    run(study)
    treated = numbers(study).query("arm == 'treated' and status == 'done'")
    late = treated.loc[treated["valid_NDCG@10"].idxmax(), "alpha"]
    assert abs(late - 0.4) < 0.1


def test_objectives_over_seeds(tmp_path):
    study = searching(tmp_path, trials=4, sampler="tpe", objectives=["mean", "worst", "epochs"])
    run(study)
    for trial in optuna_trials(study):
        if trial.state == TrialState.COMPLETE:
            mean, worst, epochs = trial.values
            assert mean - worst == pytest.approx(0.005)
            assert epochs == 3


def test_the_layer_is_a_parameter_of_a_search(tmp_path):
    study = tiny_study(
        tmp_path,
        models=[
            {"name": "NeuMF", "epochs": 2, "hyperparameters": {"mf_embedding_size": 8, "mlp_embedding_size": 8, "mlp_hidden_size": [8]}}
        ],
        transfer={"alphas": (0.5,), "layers": ("user_mf_embedding", "user_mlp_embedding")},
        search={"kind": "optuna", "trials": 6, "round_size": 3, "sampler": "random"},
        evaluation={"metrics": ["NDCG@10"], "references": []},
        controls=["alpha0"],
    )
    run(study)
    treated = numbers(study).query("arm == 'treated'")
    assert len(treated) == 6
    assert set(treated["layer"]) == {"user_mf_embedding", "user_mlp_embedding"}
    assert {name for trial in optuna_trials(study) for name in trial.params} == {"alpha", "layer_NeuMF"}
