"""The rounds of a search: what they choose from is whole, what they have begun stays, and Optuna is told what is true."""

import io
import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
from rich.console import Console

from llmkt_ray.errors import StorageError, SweepError
from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.study import StudyConfig
from llmkt_ray.sweep import run as module
from llmkt_ray.sweep.loop import LoopExecutor
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.run import run_study, store_of
from llmkt_ray.sweep.search import suggest
from llmkt_ray.sweep.space import search_cells
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from llmkt_ray.training.trial import run_trial as train_and_test
from tests.tiny import tiny_study

SMALL = {"embedding_size": 8}
PLAIN = {"evaluation": {"metrics": ["NDCG@10"], "references": []}, "controls": ["alpha0"]}


def curve(spec: TrialSpec, artifacts: TrialArtifacts, **_: object) -> TrialResult:
    """A known response to alpha."""
    value = 1 - (spec.alpha - 0.4) ** 2 + 0.01 * spec.seed_index
    return TrialResult(spec=spec, status="done", valid={spec.select_on: value}, test={spec.select_on: value}, best_epoch=3)


def searching(root: Path, search: dict[str, object] | None = None, **changes: object) -> StudyConfig:
    content = tiny_study(root).model_dump() | PLAIN | {"seeds": 2} | changes
    return StudyConfig.model_validate(content | {"search": {"kind": "optuna", "trials": 6, "round_size": 2} | (search or {})})


def run(study: StudyConfig, run_trial=curve, **settings):
    return run_study(study, executor="loop", console=Console(file=io.StringIO()), run_trial=run_trial, **settings)


def numbers(study: StudyConfig) -> pd.DataFrame:
    return Ledger(study_folder(study)).trials().drop(columns=[*MEASUREMENT_COLUMNS, "study_key"])


def states(study: StudyConfig) -> list[str]:
    """What Optuna's tools read in the journal."""
    backend = optuna.storages.journal.JournalFileBackend(f"{study_folder(study)}/search/journal.log")
    storage = optuna.storages.JournalStorage(backend)
    (name,) = optuna.get_all_study_names(storage)
    return [trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).trials]


def test_a_round_is_in_the_ledger_before_its_first_trial_starts_and_the_next_one_is_not(tmp_path):
    study, seen = searching(tmp_path), list[tuple[float, list[int], bool]]()

    def looking(spec, artifacts, **_):
        if spec.arm == "treated":
            rounds = [json.loads(path.read_bytes()) for path in sorted(Path(study_folder(study), "ledger", "suggestions").iterdir())]
            is_there = any(np.isclose(params["alpha"], spec.alpha) for params in rounds[-1]["suggestions"])
            seen.append((spec.alpha, [each["first"] for each in rounds], is_there))
        return curve(spec, artifacts)

    run(study, looking)
    assert [rounds for _, rounds, _ in seen] == [[0]] * 4 + [[0, 2]] * 4 + [[0, 2, 4]] * 4
    assert all(is_there for _, _, is_there in seen)


def test_no_round_makes_again_what_an_earlier_one_made(tmp_path, monkeypatch):
    """They would be found whole, but only after every round has read all of them."""
    asked, compute = list[str](), LoopExecutor.compute

    def noting(self, nodes, store, progress):
        asked.extend(node.key for node in nodes)
        compute(self, nodes, store, progress)

    monkeypatch.setattr(LoopExecutor, "compute", noting)
    study = searching(tmp_path, {"trials": 6, "round_size": 1})
    run(study)
    assert sorted(asked) == sorted(node.key for node in make_plan(study, store_of(study)).artifacts)


def test_a_round_reads_the_rows_and_the_journal_once_for_all_searches(tmp_path, monkeypatch):
    """Once for each search, the driver's time would grow with the square of the study."""
    reads = {"rows": 0, "journal": 0}

    def counted(owner, method, what):
        original = getattr(owner, method)

        def wrapped(self, *arguments, **settings):
            reads[what] += 1
            return original(self, *arguments, **settings)

        monkeypatch.setattr(owner, method, wrapped)

    counted(Ledger, "trials", "rows")
    counted(optuna.storages.JournalStorage, "__init__", "journal")
    by_searches = []
    for losses in (["mse"], ["mse", "cosine", "relational"]):
        reads.update(dict.fromkeys(reads, 0))
        study = searching(tmp_path / str(len(losses)), seeds=1, transfer={"loss": losses})
        run(study)
        by_searches.append(dict(reads))
    assert by_searches[0] == by_searches[1]
    assert by_searches[0]["journal"] == 3, "one a round"


def test_rows_that_are_lost_end_a_search_before_anything_is_suggested_from_what_is_left(tmp_path, monkeypatch):
    """Told as failed, a suggestion whose rows are lost would change all that are suggested after it."""

    class Swallows(LoopExecutor):
        def run(self, batches, place, progress):
            for number, batch in enumerate(batches):  # the controls, and a batch a round
                super().run(iter([batch[:-2] if number == 2 else batch]), place, progress)

    whole, study = searching(tmp_path / "whole"), searching(tmp_path / "lost")
    run(whole)
    with monkeypatch.context() as patch:
        patch.setattr(module, "LoopExecutor", Swallows)
        with pytest.raises(SweepError, match=r"2 of 10 trials were given out and have no row"):
            run(study)
    assert states(study) == ["COMPLETE"] * 2, "a round is told when it is whole"
    run(study)
    assert states(study) == ["COMPLETE"] * 6
    pd.testing.assert_frame_equal(numbers(study), numbers(whole), check_exact=True)


def test_tuning_trials_that_are_lost_end_a_study_before_it_chooses_among_the_others(tmp_path, monkeypatch):
    class Swallows(LoopExecutor):
        def run(self, batches, place, progress):
            for batch in batches:
                super().run(iter([batch[:-1]]), place, progress)

    study = tiny_study(tmp_path, tuning={"trials": 3})
    with monkeypatch.context() as patch:
        patch.setattr(module, "LoopExecutor", Swallows)
        with pytest.raises(SweepError, match=r"1 of 3 trials were given out and have no row"):
            run(study)
    assert set(numbers(study)["arm"]) == {"baseline"}


def test_a_limit_that_ends_with_a_round_leaves_none_of_it_untold(tmp_path):
    study = searching(tmp_path)
    assert run(study, limit=2 + 12).ran == 14
    assert states(study) == ["COMPLETE"] * 6


def test_a_failed_suggestion_that_is_run_again_is_told_as_what_it_is_then(tmp_path):
    study, broken = searching(tmp_path), SimpleNamespace(alpha=0.5)

    def fails(spec, artifacts, **_):
        if spec.alpha == broken.alpha:
            raise ValueError("the disk of that node")
        return curve(spec, artifacts)

    run(study, fails)
    assert states(study) == ["FAIL"] + ["COMPLETE"] * 5
    broken.alpha = None
    assert run(study, fails, retry_failed=True).ran == 2
    assert states(study) == ["COMPLETE"] * 6


def test_a_failed_suggestion_that_is_run_again_changes_no_rung_of_rounds_that_have_begun(tmp_path):
    """A rung is part of a trial's key: with others, finished trials would be run again and have two rows."""
    model = {"name": "BPR", "epochs": 12, "batch_size": 256, "hyperparameters": SMALL}
    search = {"sampler": "random", "trials": 9, "round_size": 3, "early_stopping": {"grace_epochs": 1, "factor": 2}}
    study, broken = searching(tmp_path, search, models=[model], seeds=1), SimpleNamespace(alpha=0.5)

    def fails(spec, artifacts, **settings):
        if spec.arm == "treated" and spec.alpha == broken.alpha:
            raise ValueError("the disk of that node")
        return train_and_test(spec, artifacts, **settings)

    run(study, fails)
    before = numbers(study).query("status != 'failed'")
    assert "pruned" in set(before["status"])
    broken.alpha = None
    assert run(study, fails, retry_failed=True).ran == 1
    after = numbers(study)
    assert len(after) == 10
    pd.testing.assert_frame_equal(after[after["trial_key"].isin(before["trial_key"])].reset_index(drop=True), before.reset_index(drop=True))


def test_dimensions_of_one_reducer_are_searched_apart(tmp_path):
    """Only what `dims: layer` comes to is left to the layer."""
    reductions = [{"method": "pca", "dims": 4}, {"method": "pca", "dims": 8}]
    study = searching(tmp_path, {"trials": 2}, reduction=reductions, transfer={"projection": "student"})
    cells = search_cells(make_plan(study, store_of(study)))
    assert [[cell.factors["dims"] for cell in search.members.values()] for search in cells] == [[4], [8]]
    assert len({search.name.rpartition(" ")[0] for search in cells}) == 2, "told apart by name"
    run(study)
    assert numbers(study).query("arm == 'treated'").groupby("dims").size().to_dict() == {4: 4, 8: 4}


@pytest.mark.parametrize("listed", [[0, 0.001], [0.0, 0.001]])
def test_a_choice_is_the_models_own_value_however_it_is_written(tmp_path, listed):
    model = {"name": "BPR", "epochs": 4, "hyperparameters": SMALL, "weight_decay": 0, "search": {"choices": {"weight_decay": listed}}}
    study = searching(tmp_path, models=[model], controls=["baseline"])
    run(study)
    plain = numbers(study).query("arm == 'baseline'")
    assert sorted(set(plain["weight_decay"])) == [0, 0.001]
    assert len(plain) == 4, "a configuration has one row a seed"


@pytest.mark.parametrize(
    ("tuning", "search", "said"),
    [
        ({}, {"ranges": {"learning_rate": [0.0005, 0.005]}}, r"must lie in its range \[0\.0005, 0\.005\]"),
        ({}, {"choices": {"learning_rate": [0.001, 0.01]}}, r"must be one of \[0\.001, 0\.01\]"),
        ({"ranges": {}, "choices": {"batch_size": [256, 512]}}, {"choices": {"batch_size": [128, 256]}}, r"must be one of \[128, 256\]"),
    ],
)
def test_what_tuning_may_choose_the_search_can_try_first(tmp_path, tuning, search, said):
    model = {"name": "BPR", "epochs": 4, "batch_size": 256, "learning_rate": 0.001, "search": search}
    with pytest.raises(ValueError, match=said):
        searching(tmp_path, models=[model], tuning={"trials": 3} | tuning)
    searching(tmp_path, models=[model], tuning={"trials": 0} | tuning)


def test_a_setting_may_be_tuned_and_searched_in_one_range(tmp_path):
    model = {"name": "BPR", "epochs": 4, "hyperparameters": SMALL, "search": {"ranges": {"learning_rate": [0.00012345, 0.0102]}}}
    study = searching(tmp_path, models=[model], tuning={"trials": 4, "ranges": {"learning_rate": [0.00012345, 0.0102]}})
    assert run(study).failed == 0


def test_qmc_points_lie_more_evenly_than_random_ones(tmp_path):
    """Of 32 points of a Sobol sequence in 16 equal intervals each has two, but for the default and the one before the sequence."""
    study = searching(tmp_path, {"sampler": "qmc", "trials": 32, "round_size": 8, "alpha": [0, 1]})
    (cell,) = search_cells(make_plan(study, store_of(study)))
    rounds = [suggest(cell.space(study), study, [], first, 8, cell.default(study), cell.key) for first in range(0, 32, 8)]
    alphas = [params["alpha"] for made in rounds for params in made]
    counts = np.histogram(alphas, bins=16, range=(0, 1))[0]
    assert np.abs(counts - 2).sum() <= 3, counts


def cut(path: Path) -> None:
    """As a kill in the middle of a line leaves it."""
    path.write_bytes(path.read_bytes()[:-20])


def scratch(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] = 0
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, scratch])
def test_a_damaged_journal_is_set_aside_and_made_anew(tmp_path, damage):
    study = searching(tmp_path)
    run(study, limit=2 + 4)
    journal = Path(study_folder(study), "search", "journal.log")
    damage(journal)
    run(study)
    assert states(study) == ["COMPLETE"] * 6
    assert journal.with_name("journal.damaged.log").exists()


def test_a_journal_that_cannot_be_written_is_told(tmp_path):
    study = searching(tmp_path)
    Path(study_folder(study), "search", "journal.log").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"journal\.log failed.*check the storage, then run again"):
        run(study)


def test_a_database_of_another_optuna_ends_no_search(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    optuna.storages.RDBStorage(url)
    with sqlite3.connect(tmp_path / "optuna.db") as database:
        database.execute("update alembic_version set version_num = 'v99'")
        database.execute("update version_info set schema_version = 99")
    said = io.StringIO()
    study = searching(tmp_path, {"storage": url})
    summary = run_study(study, executor="loop", console=Console(file=said, width=400), run_trial=curve)
    assert (summary.done, summary.failed) == (14, 0)
    assert "search.storage cannot be written: The runtime optuna version" in said.getvalue()


@pytest.mark.parametrize("made", [[], [{"alpha": 5.0}, {"alpha": 0.4}], [{"beta": 0.4}, {"alpha": 0.4}], "ab", None, 7])
def test_a_damaged_round_is_named(tmp_path, made):
    study = searching(tmp_path)
    run(study, limit=2 + 4)
    (path,) = Path(study_folder(study), "ledger", "suggestions").glob("*-00000.json")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"suggestions": made}))
    with pytest.raises(SweepError, match=r"-00000\.json is damaged .*; delete it and run again: its suggestions are made anew"):
        run(study)
    path.unlink()
    assert run(study).failed == 0
    assert len(numbers(study)) == 14
