"""What contradicts itself inside a study file, beside what test_study.py has."""

import pytest
import yaml

from llmkt_ray.errors import StudyError, TrainingError
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.study_file import parse_study
from llmkt_ray.transfer.phases import PhasePlan


def refusal(**changes) -> str:
    with pytest.raises(StudyError) as caught:
        parse_study(yaml.safe_dump({"name": "s", "datasets": [{"name": "ml-100k"}], "models": [{"name": "BPR", "epochs": 20}], **changes}))
    return str(caught.value)


@pytest.mark.parametrize("kind", ["two_phase", "pretrain", "reversed"])
@pytest.mark.parametrize(("switch", "phase"), [(0.01, 1), (0, 1), (1, 2)])
def test_both_phases_have_an_epoch(kind, switch, phase):
    found = refusal(transfer={"schedule": {"kind": kind, "switch": switch}})
    assert f"switch {switch:g} of 20 epochs leaves model 'BPR' without phase {phase}; switch must be at least 0.05 and below 1" in found


@pytest.mark.parametrize("epochs", [2, 3, 6, 7, 11, 30, 49, 97])
def test_the_switch_that_a_refusal_names_is_one_that_is_taken(epochs):
    """1/3 as 0.333333 would be refused again, with the same words."""
    models = [{"name": "BPR", "epochs": epochs}]
    found = refusal(models=models, transfer={"schedule": {"switch": 0.001}})
    named = float(found.partition("switch must be at least ")[2].split()[0])
    study = {"name": "s", "datasets": ["ml-100k"], "models": models, "transfer": {"schedule": {"switch": named}}}
    assert parse_study(yaml.safe_dump(study)).transfer.schedule[0].phase1_epochs(epochs) == 1
    with pytest.raises(TrainingError, match=f"choose a switch in \\[{named:g}, 1\\)"):
        PhasePlan(ScheduleConfig(switch=0.001), epochs)


def test_the_epochs_that_tuning_tries_have_both_phases():
    """Tuning itself runs the plain model, to which any number of epochs is fine: all other arms would then have failed."""
    schedule, choices = {"schedule": {"switch": 0.1}}, {"choices": {"epochs": [20, 5]}}
    found = refusal(transfer=schedule, tuning={"trials": 4, **choices})
    assert "switch 0.1 of 5 epochs (tried by tuning) leaves model 'BPR' without phase 1; switch must be at least 0.2 and below 1" in found
    assert "of 20 epochs" not in found
    assert "'BPR' has 1 epoch (tried by tuning), but two phases" in refusal(tuning={"trials": 4, "choices": {"epochs": [1]}})
    study = {"name": "s", "datasets": ["ml-100k"], "models": ["BPR"], "transfer": schedule, "tuning": choices}
    parse_study(yaml.safe_dump(study))  # nothing is tuned: the choices are not tried


def test_the_epochs_that_tuning_tries_have_a_rung():
    search = {"kind": "optuna", "early_stopping": {"grace_epochs": 4}}
    found = refusal(seeds=1, search=search, tuning={"trials": 4, "choices": {"epochs": [40, 8]}})
    assert "grace_epochs 4 leaves nothing to stop: phase 2 of BPR has 4 of 8 epochs; give it less than 4" in found


def test_a_switch_is_what_the_user_wrote_and_not_its_rounding():
    text = yaml.safe_dump(
        {
            "name": "s",
            "datasets": ["ml-100k"],
            "models": [{"name": "BPR", "epochs": 100}],
            "transfer": {"schedule": {"switch": 0.29}},
        }
    )
    assert parse_study(text).transfer.schedule[0].phase1_epochs(100) == 29


def test_a_split_by_time_cannot_be_repeated():
    found = refusal(datasets=[{"name": "ml-100k", "split": {"kind": "time", "repetitions": 3}}])
    assert "a split by time is always the same: 3 repetitions are no replicates" in found


def test_the_claim_is_made_where_the_search_looks():
    assert "claim_alpha 0.5 must lie in the searched range [0.6, 0.9] of alpha" in refusal(search={"kind": "optuna", "alpha": [0.6, 0.9]})


def test_a_search_over_alpha_needs_a_schedule_that_has_one():
    found = refusal(search={"kind": "optuna"}, transfer={"schedule": {"kind": "pretrain"}})
    assert "schedule 'pretrain' has alpha 1 only" in found


def test_the_journal_of_a_search_cannot_live_in_an_object_store():
    found = refusal(search={"kind": "optuna"}, storage="s3://team/results")
    assert "'s3://team/results' is an object store, where Optuna's journal cannot live: give `search.storage` an RDB URL" in found
    search = {"kind": "optuna", "storage": "postgresql://host/optuna"}
    text = yaml.safe_dump({"name": "s", "datasets": ["ml-100k"], "models": ["BPR"], "search": search, "storage": "s3://team/results"})
    assert parse_study(text).search.storage == "postgresql://host/optuna"
