"""What a run and a check refuse, beside what test_check.py has."""

import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from llmkt_ray.errors import ResourceError, StudyError, SweepError
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep import run as module
from llmkt_ray.sweep.check import check_study, refuse_impossible_targets
from llmkt_ray.sweep.loop import LoopExecutor
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.progress import Progress
from llmkt_ray.sweep.run import make_splits, run_study, store_of
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from tests.tiny import tiny_study


def good(spec: TrialSpec, artifacts: TrialArtifacts, **_: object) -> TrialResult:
    return TrialResult(spec=spec, status="done", valid=dict.fromkeys(spec.metrics, 0.5), test=dict.fromkeys(spec.metrics, 0.5))


def run(study, **settings):
    return run_study(study, executor="loop", console=Console(file=io.StringIO()), run_trial=good, **settings)


def test_the_same_texts_under_two_names_are_refused(tmp_path):
    file = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"user_id": [f"u{user}" for user in range(60)], "profile": ["likes films"] * 60}), file)
    profiles = [{"llm": "file", "name": name, "path": str(file)} for name in ("gpt-4", "claude")]
    study = tiny_study(tmp_path, profiles=profiles)
    with pytest.raises(StudyError, match="profiles 'gpt-4' and 'claude' are the same texts under two names"):
        check_study(study, store_of(study))


def test_another_generation_at_temperature_0_would_be_the_same_texts(tmp_path):
    writer = {"llm": "openai", "model": "gpt-x", "temperature": 0.0}
    study = tiny_study(tmp_path, profiles=[writer, writer | {"name": "draw 1", "generation": 1}])
    with pytest.raises(StudyError, match=r"profiles 'draw 1' are generation 1 at temperature 0.*set a temperature above 0") as caught:
        check_study(study, store_of(study))
    assert len(caught.value.problems) == 1
    warm = tiny_study(tmp_path, profiles=[writer | {"temperature": 0.7, "name": name, "generation": at} for at, name in enumerate("ab")])
    check_study(warm, store_of(warm))


def test_a_prefix_for_an_encoder_that_reads_none_is_told_by_check(tmp_path):
    study = tiny_study(tmp_path, embedding={"encoder": "tfidf_svd", "dims": 20, "prefix": "query: "})
    with pytest.raises(StudyError, match=r"embedding\.prefix 'query: ' means nothing to tfidf_svd"):
        check_study(study, store_of(study))


def test_an_endpoint_of_unknown_width_does_not_stop_a_run_before_it_has_answered(tmp_path):
    study = tiny_study(tmp_path, embedding={"encoder": "own-model", "via": "openai"})
    store = store_of(study)
    make_splits(study, store, LoopExecutor(), Progress(Console(file=io.StringIO())))
    refuse_impossible_targets(make_plan(study, store), store)


@pytest.mark.parametrize("writer", [{"llm": "openai", "model": "gpt-x"}, {"llm": "template"}])
def test_nobody_is_asked_to_write_about_items_of_which_nothing_is_known(tmp_path, writer):
    study = tiny_study(tmp_path, profiles=[writer])
    (tmp_path / "toy" / "items.parquet").unlink()
    with pytest.raises(StudyError, match=r"the items of 'toy' have no title, genres.*bring profiles of your own \(llm: file\)"):
        run(study)


def test_arms_of_one_study_are_not_mixed_over_kinds_of_device(tmp_path):
    study = tiny_study(tmp_path)
    run(study, limit=2)
    on_gpu = study.model_copy(update={"resources": study.resources.model_validate({"trial": {"gpus": 1}})})
    with pytest.raises(ResourceError, match=r"2 trials of this study ran on 'cpu', but resources\.trial asks for 'cuda' now"):
        run(on_gpu)
    assert run(study).ran == 4, "on the same device it goes on"


def test_failed_trials_do_not_bind_a_study_to_their_device(tmp_path):
    study = tiny_study(tmp_path)

    def bad(spec, artifacts, **_):
        raise ValueError("no memory")

    run_study(study, executor="loop", console=Console(file=io.StringIO()), run_trial=bad)
    module.refuse_other_device(Ledger(tmp_path / "results" / "tiny"), "cuda")


def test_trials_that_leave_no_row_are_an_error_and_not_a_success(tmp_path, monkeypatch):
    class Swallows(LoopExecutor):
        def run(self, batches, place, progress):
            for batch in batches:
                super().run(iter([batch[:-2]]), place, progress)

    study = tiny_study(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "LoopExecutor", Swallows)
        with pytest.raises(SweepError, match=r"2 of 6 trials were given out and have no row .* run the same command again to go on"):
            run(study)
    assert run(study).ran == 2


def test_a_limited_search_keeps_room_for_the_treated_trial_of_the_claim(tmp_path):
    study = tiny_study(tmp_path, search={"kind": "optuna", "trials": 1, "round_size": 1})
    run(study, limit=4)
    rows = Ledger(tmp_path / "results" / "tiny").trials()
    assert sorted(zip(rows["arm"], rows["alpha"], strict=True)) == [("alpha0", 0), ("baseline", 0), ("shuffled", 0.5), ("treated", 0.5)]


def test_tune_leaves_ctrl_c_to_us_also_where_the_caller_started_ray():
    """In a process of its own: the settings are read from its environment."""
    program = (
        "import json, os, ray\n"
        "ray.is_initialized = lambda: True\n"
        "from llmkt_ray.sweep.cluster import cluster\n"
        "with cluster():\n"
        "    print(json.dumps({name: value for name, value in os.environ.items() if name.startswith('TUNE_')}))\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TUNE_")}
    found = json.loads(subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True).stdout)
    assert found["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
    assert found["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] == "1"


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"freeze": {"phase2": ("usr_*",)}}, r"freezing pattern 'usr_\*' of phase2 matches no parameter; parameters: item_embedding"),
        ({"freeze": {"phase1": ("*",)}}, r"freezing \['\*'\] in phase1 leaves nothing to train"),
        (
            {"freeze": {"phase1": ("user_*",)}},
            r"freezing \['user_\*'\] in phase1, in which profiles are transferred, fixes all .* before layer 'user_embedding' of BPR",
        ),
        ({"kind": "reversed", "freeze": {"phase2": ("user_*",)}}, "in phase2, in which profiles are transferred"),
    ],
)
def test_freezing_that_no_trial_could_do_is_told_before_anything_is_written(tmp_path, schedule, message):
    study = tiny_study(tmp_path, transfer={"alphas": (0.5,), "schedule": ({}, schedule)})
    with pytest.raises(StudyError, match=message):
        check_study(study, store_of(study))


def test_freezing_a_table_of_users_holds_in_the_arm_that_joins_profiles_to_it(tmp_path):
    freeze = {"phase2": ("user_embedding.weight",)}
    study = tiny_study(tmp_path, controls=["alpha0", "input_concat"], transfer={"alphas": (0.5,), "schedule": {"freeze": freeze}})
    check_study(study, store_of(study))
    run_study(study, executor="loop", console=Console(file=io.StringIO()))
    rows = Ledger(tmp_path / "results" / "tiny").trials()
    assert set(rows["status"]) == {"done"}, rows["error_message"].dropna().tolist()


def test_a_phase_that_a_schedule_does_not_have_cannot_be_frozen(tmp_path):
    with pytest.raises(ValueError, match=r"freeze\.phase2 \['item_\*'\] would freeze nothing: kind 'joint' has one phase; say `phase1`"):
        tiny_study(tmp_path, transfer={"alphas": (0.5,), "schedule": {"kind": "joint", "freeze": {"phase2": ("item_*",)}}})
