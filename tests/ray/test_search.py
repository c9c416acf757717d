"""A search is as reproducible as a grid: by executor, by crash, and its told states are true."""

import io
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from rich.console import Console

from llmkt_ray.errors import StudyError
from llmkt_ray.results.card import read_card
from llmkt_ray.results.folder import artifacts_folder, study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.study import BudgetConfig, StudyConfig
from llmkt_ray.sweep.check import check_study
from llmkt_ray.sweep.execute import load_artifacts
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.run import run_study, store_of
from llmkt_ray.sweep.space import search_cells
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from llmkt_ray.training.trial import run_trial
from tests.clusters import free_port
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


def test_what_is_told_can_live_in_a_database(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    study, plain = searching(tmp_path, trials=4, storage=url), searching(tmp_path / "plain", trials=4)
    run(study)
    next((tmp_path / "results" / "tiny" / "ledger" / "trials").iterdir()).unlink()
    run(study)
    run(plain)
    assert not (tmp_path / "results" / "tiny" / "search").exists(), "no journal beside it"
    (name,) = optuna.get_all_study_names(url)
    found = optuna.load_study(study_name=name, storage=url).trials
    told = optuna_trials(plain)
    assert [(trial.state, trial.values, trial.params) for trial in found] == [(trial.state, trial.values, trial.params) for trial in told]
    assert len(found) == 4


def test_the_dashboard_of_optuna_shows_what_was_told(tmp_path):
    """The command of docs/search.md, asked as a browser asks it."""
    study = searching(tmp_path, trials=4, sampler="random", alpha=(0.0, 1.0))
    run(study)
    port = free_port()
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), "journal.log", "--host", "127.0.0.1", "--port", str(port)]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, cwd=f"{study_folder(study)}/search", stdout=said, stderr=said)
    try:
        studies = ask(f"http://127.0.0.1:{port}/api/studies", process)["study_summaries"]
        assert [each["study_name"] for each in studies] == [f"tiny {search_cells(make_plan(study, store_of(study)))[0].name}"]
        shown = ask(f"http://127.0.0.1:{port}/api/studies/{studies[0]['study_id']}", process)["trials"]
    finally:
        process.terminate()
        process.wait(timeout=30)
    told = optuna_trials(study)
    assert [trial["state"].upper() for trial in shown] == [trial.state.name for trial in told]
    assert [trial.get("values") for trial in shown] == [trial.values for trial in told]
    assert [trial["params"][0]["param_external_value"] for trial in shown] == [str(trial.params["alpha"]) for trial in told]


def ask(url: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Returns the JSON at a URL of a server that may still be starting."""
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert process.poll() is None, "the dashboard has ended"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the dashboard does not answer")


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


def test_a_pilot_of_a_search_ends_in_the_middle_of_a_round_says_so_and_goes_on_as_if_it_had_not(tmp_path, executor):
    """Two controls, and three suggestions over two seeds a round: the budget is used up by the fifth of their six trials."""
    whole = searching(tmp_path / "whole")
    run(whole)
    study = searching(tmp_path / "pilot")
    pilot = study.model_copy(update={"budget": BudgetConfig(trials=7)})
    summary = run(pilot, executor)
    assert (summary.ran, summary.left_out) == (7, 15)
    assert 0.5 in set(numbers(study).query("arm == 'treated'")["alpha"]), "the claim is part of it"
    assert (again := run(pilot, executor)).ran == 0
    assert again.left_out == 15
    rest = run(study, executor)
    assert (rest.ran, rest.left_out) == (15, 0)
    pd.testing.assert_frame_equal(numbers(study), numbers(whole), check_exact=True)


def test_tpe_finds_the_top_of_a_known_curve(tmp_path):
    study = searching(tmp_path, trials=24, round_size=4)
    run(study)
    treated = numbers(study).query("arm == 'treated' and status == 'done'")
    late = treated.loc[treated["valid_NDCG@10"].idxmax(), "alpha"]
    assert abs(late - 0.4) < 0.1


def test_objectives_over_seeds(tmp_path):
    study = searching(tmp_path, trials=4, sampler="tpe", objectives=["mean", "worst", "mean_minus_sd", "epochs"], risk=2.0)
    run(study)
    for trial in optuna_trials(study):
        if trial.state == TrialState.COMPLETE:
            mean, worst, robust, epochs = trial.values
            assert mean - worst == pytest.approx(0.005)
            assert mean - robust == pytest.approx(2 * 0.01 / np.sqrt(2))
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


SEARCHED = (
    {
        "name": "BPR", "epochs": 2, "learning_rate": 0.001, "hyperparameters": {"embedding_size": 8},
        "search": {"ranges": {"learning_rate": [0.0001, 0.01]}},
    },
    {
        "name": "NeuMF", "epochs": 2, "layers": ["user_mf_embedding", "user_mlp_embedding"],
        "hyperparameters": {"mf_embedding_size": 8, "mlp_embedding_size": 8, "mlp_hidden_size": [8], "dropout_prob": 0.1},
        "search": {"choices": {"mlp_hidden_size": [[8], [16, 8]], "dropout_prob": [0.1, 0.3]}},
    },
)  # fmt: skip


def settings_of(trials) -> set[frozenset[str]]:
    return {frozenset(trial.params) for trial in trials}


def test_each_model_has_a_space_of_its_own_and_its_baseline_the_same_budget_and_ranges(tmp_path):
    study = searching(tmp_path, trials=6, sampler="random").model_dump() | {"models": SEARCHED, "controls": ["baseline", "alpha0"]}
    study = StudyConfig.model_validate(study)
    run(study)
    rows = numbers(study)
    counts = rows.groupby(["model", "arm"]).size()
    assert counts["BPR", "treated"] == counts["BPR", "baseline"] == counts["NeuMF", "treated"] == 12, "six suggestions over two seeds"
    assert counts["NeuMF", "baseline"] in (4, 6, 8), "of a space of four, none is run twice"
    treated, plain = (rows.query("model == 'BPR' and arm == @arm")["learning_rate"] for arm in ("treated", "baseline"))
    for rates in (treated, plain):
        assert rates.between(0.0001, 0.01).all()
        assert rates.nunique() == 6
        assert 0.001 in set(rates), "the default is tried"
    assert len(rows) == read_card(study_folder(study))["planned_trials"], "what was suggested twice is not waited for"

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(f"{study_folder(study)}/search/journal.log"))
    studies = {name: optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)}
    of_neumf = {"dropout_prob_NeuMF", "mlp_hidden_size_NeuMF"}
    spaces = {("NeuMF" in name, "baseline" in name): settings_of(each.trials) for name, each in studies.items()}
    assert spaces == {
        (False, False): {frozenset({"alpha", "learning_rate_BPR"})},
        (False, True): {frozenset({"learning_rate_BPR"})},
        (True, False): {frozenset({"alpha", "layer_NeuMF", *of_neumf})},
        (True, True): {frozenset(of_neumf)},
    }
    for each in studies.values():
        first = each.trials[0].params
        assert first.get("learning_rate_BPR", 0.001) == 0.001
        assert first.get("dropout_prob_NeuMF", "0.1") == "0.1"
    searched = next(each for name, each in studies.items() if "BPR" in name and "baseline" not in name)
    assert set(optuna.importance.get_param_importances(searched)) == {"alpha", "learning_rate_BPR"}


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"ranges": {"learning_rate": [0.01, 0.1]}}, "is tried first and must lie in its range"),
        ({"ranges": {"reg_weight": [0.01, 0.1]}}, "whose default is not known"),
        ({"choices": {"epochs": [2, 4]}}, "epochs cannot be searched"),
        ({"choices": {"embedding_size": [8, 16]}}, "changes the width of a layer"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(tmp_path, search, said):
    content = searching(tmp_path).model_dump() | {"models": [SEARCHED[0] | {"search": search}]}

    def look() -> None:
        study = StudyConfig.model_validate(content)
        check_study(study, store_of(study))

    with pytest.raises((ValueError, StudyError), match=said):
        look()


def stopping(root, **changes):
    return tiny_study(
        root,
        search={"kind": "optuna", "sampler": "random", "trials": 9, "round_size": 3, "early_stopping": {"grace_epochs": 1, "factor": 3}},
        models=[{"name": "BPR", "epochs": 12, "batch_size": 256, "hyperparameters": {"embedding_size": 8}}],
        evaluation={"metrics": ["NDCG@10"], "references": []},
        controls=["alpha0"],
        **changes,
    )


def real(study, executor="loop"):
    return run_study(study, executor=executor, console=Console(file=io.StringIO()))


def test_early_stopping_judges_phase_2_and_its_rows_say_so_the_same_on_both_executors(tmp_path, executor):
    study = stopping(tmp_path / executor)
    real(study, executor)
    rows, ledger = numbers(study), Ledger(study_folder(study))
    pruned = rows[rows["status"] == "pruned"]
    assert 0 < len(pruned) < 9
    assert pruned["test_NDCG@10"].isna().all(), "test is not opened for what is stopped"
    assert pruned["valid_NDCG@10"].notna().all()
    for key in pruned["trial_key"]:
        curve = ledger.curve(key)
        assert (curve["phase"] == 1).sum() == 6, "nobody is stopped in phase 1"
        assert (curve["phase"] == 2).sum() in (1, 3), "at a rung"
    states = [trial.state for trial in optuna_trials(study)]
    assert states[:3] == [TrialState.COMPLETE] * 3, "the first round has nobody to be behind"
    assert states.count(TrialState.PRUNED) == len(pruned)
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    if executor == "ray":
        plain = stopping(tmp_path / "plain")
        real(plain)
        pd.testing.assert_frame_equal(rows, numbers(plain), check_exact=True)


def test_a_stopped_trial_that_is_resumed_ends_at_the_same_epoch(tmp_path):
    """A crash right after a rung's checkpoint must not give the trial one more epoch."""
    study = stopping(tmp_path)
    real(study)
    (row,) = numbers(study).query("status == 'pruned'").head(1).to_dict("records")
    spec, ledger = TrialSpec.model_validate_json(row["spec"]), Ledger(study_folder(study))
    spec = spec.model_copy(update={"factors": {}})
    assert spec.key == row["trial_key"]
    artifacts = load_artifacts(spec, artifacts_folder(study), str(tmp_path / "scratch"))

    class Crash(Exception):
        pass

    def crash(epoch: dict[str, Any]) -> None:
        if epoch["epoch"] == len(ledger.curve(spec.key)):
            raise Crash

    with pytest.raises(Crash):
        run_trial(spec, artifacts, checkpoint_dir=tmp_path / "checkpoints", checkpoint_interval_s=0.0, on_epoch=crash)
    result = run_trial(spec, artifacts, checkpoint_dir=tmp_path / "checkpoints", checkpoint_interval_s=0.0)
    assert result.status == "pruned"
    assert len(result.epochs) == len(ledger.curve(spec.key))
    assert result.valid["NDCG@10"] == row["valid_NDCG@10"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 2}, "judges single trials"),
        ({"transfer": {"schedule": {"kind": "joint"}}}, "judges phase 2 alone"),
        ({"transfer": {"schedule": {"switch": 1.0}}}, "judges phase 2 alone"),
        ({"transfer": {"schedule": [{"switch": 0.25}, {"switch": 0.5}]}}, "switches"),
        ({"training": {"evaluate_every": 2}}, "grace_epochs 1 must be at least"),
    ],
)
def test_early_stopping_is_refused_where_it_would_be_unfair(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        stopping(tmp_path, **changes)


@pytest.mark.parametrize("more", [{"kind": "grid"}, {"objectives": ["mean", "epochs"]}])
def test_early_stopping_needs_a_search_for_one_value(tmp_path, more):
    with pytest.raises(ValueError, match="early_stopping ends suggestions of a search"):
        tiny_study(tmp_path, search={"kind": "optuna", "early_stopping": {}} | more)
