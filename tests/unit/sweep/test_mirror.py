"""The copy of a search in Optuna's storage: it ends no search, and studies of one name share a database without mixing."""

import io

import optuna
import pandas as pd
from rich.console import Console

from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep.run import run_study
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from tests.tiny import tiny_study


def known(spec: TrialSpec, artifacts: TrialArtifacts, **_: object) -> TrialResult:
    values = {spec.select_on: 1 - (spec.alpha - 0.4) ** 2}
    return TrialResult(spec=spec, status="done", valid=values, test=values, best_epoch=1)


def searching(root, url, **changes):
    search = {"kind": "optuna", "sampler": "random", "trials": 4, "round_size": 2, "storage": url}
    return tiny_study(root, search=search, evaluation={"metrics": ["NDCG@10"], "references": []}, controls=["alpha0"], **changes)


def run(study) -> str:
    said = io.StringIO()
    run_study(study, executor="loop", console=Console(file=said, width=400), run_trial=known)
    return said.getvalue()


def alphas(study) -> pd.Series:
    rows = Ledger(study_folder(study)).trials()
    return rows.loc[rows["arm"] == "treated", "alpha"].sort_values(ignore_index=True)


def test_a_database_that_is_away_ends_no_search_and_gets_all_of_it_later(tmp_path):
    folder = tmp_path / "away"
    study = searching(tmp_path, url := f"sqlite:///{folder}/optuna.db")
    said = run(study)
    assert "search.storage cannot be written: " in said
    assert "unable to open database file" in said
    assert len(alphas(study)) == 4
    folder.mkdir()
    assert "cannot be written" not in run(study)
    (name,) = optuna.get_all_study_names(url)
    assert len(optuna.load_study(study_name=name, storage=url).trials) == 4


def test_studies_of_one_name_have_optuna_studies_of_their_own_in_a_database(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    studies = [searching(tmp_path / str(seed), url, seed=seed) for seed in (1, 2)]
    for study in studies:
        run(study)
    found = [optuna.load_study(study_name=name, storage=url).trials for name in sorted(optuna.get_all_study_names(url))]
    assert len(found) == 2
    told = sorted(sorted(trial.params["alpha"] for trial in trials) for trials in found)
    assert told == sorted(list(alphas(study)) for study in studies)
