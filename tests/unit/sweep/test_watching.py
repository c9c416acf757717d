"""What a run leaves for those who watch it: TensorBoard files, a log of JSON lines, and a word on where it stands."""

import io
import json
import logging
from contextlib import contextmanager

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llmkt_ray.artifacts import FileStore
from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.show import progress_lines
from llmkt_ray.study import DatasetConfig, ProfileConfig, ResourcesConfig, TaskResources
from llmkt_ray.sweep import run as module
from llmkt_ray.sweep.boards import Board
from llmkt_ray.sweep.journal import Journal, JsonFormatter, read_progress, set_trial
from llmkt_ray.sweep.loop import LoopExecutor
from llmkt_ray.sweep.names import describe, file_name
from llmkt_ray.sweep.pipeline import SplitNode, TextsNode
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.progress import Progress
from llmkt_ray.sweep.run import run_study, store_of
from llmkt_ray.sweep.tuner import RayExecutor
from llmkt_ray.training.spec import TrialResult
from llmkt_ray.training.trial import run_trial
from tests.tiny import tiny_study

QUIET = Console(file=io.StringIO())


def scalars(folder, tag):
    board = EventAccumulator(str(folder))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def lines(folder):
    return [json.loads(line) for path in sorted((folder / "logs").glob("*.jsonl")) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study, one of its arms failed, and its folder."""
    root = tmp_path_factory.mktemp("watched")
    study = tiny_study(root)

    def sometimes(spec, artifacts, **settings):
        if spec.arm == "shuffled":
            raise ValueError("no luck")
        return run_trial(spec, artifacts, **settings)

    run_study(study, executor="loop", console=QUIET, run_trial=sometimes)
    return study, root / "results" / "tiny"


def test_a_run_says_once_what_the_encoder_does_not_read_of_the_texts(tmp_path):
    study = tiny_study(tmp_path, embedding={"max_tokens": 16})
    for already_made in (False, True):
        said = Console(file=io.StringIO())
        run_study(study, executor="loop", console=said, limit=2 if already_made else 1)
        text = said.file.getvalue()
        assert text.count("of the texts of template (toy) are longer than the 16 tokens that") == 1
        assert "set embedding.max_tokens: 512" in text


def test_every_trained_trial_has_tensorboard_files_with_the_numbers_of_the_ledger(finished):
    study, folder = finished
    plan = make_plan(study, store_of(study))
    epochs, trials = Ledger(folder).epochs(), Ledger(folder).trials().set_index("trial_key")
    trained = [spec for spec in plan.trials if spec.arm not in ("reference", "shuffled")]
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {file_name(spec) for spec in trained}
    for spec in trained:
        here = folder / "tensorboard" / file_name(spec)
        mine = epochs[epochs["trial_key"] == spec.key]
        told = scalars(here, "valid/NDCG@10")
        assert [step for step, _ in told] == list(mine["epoch"])
        assert [value for _, value in told] == pytest.approx(list(mine["valid_NDCG@10"]))
        assert [value for _, value in scalars(here, "loss/model")] == pytest.approx(list(mine["loss_model"]))
        [(step, value)] = scalars(here, "test/NDCG@10")
        assert (step, value) == (trials.loc[spec.key, "best_epoch"], pytest.approx(trials.loc[spec.key, "test_NDCG@10"]))


def test_epochs_that_a_resumed_trial_repeats_count_once(tmp_path):
    study = tiny_study(tmp_path)
    spec = next(spec for spec in make_plan(study, store_of(study)).trials if spec.arm == "treated")
    first = Board(str(tmp_path / "there"), tmp_path, spec)
    for epoch in (1, 2, 3):
        first.epoch({"epoch": epoch, "loss_model": 9.0})
    again = Board(str(tmp_path / "there"), tmp_path, spec)  # the checkpoint was of epoch 1
    for epoch in (2, 3, 4):
        again.epoch({"epoch": epoch, "loss_model": 1.0})
    again.close(TrialResult(spec=spec, status="done", test={"NDCG@10": 0.5}, best_epoch=4))
    assert scalars(tmp_path / "there" / "tensorboard" / file_name(spec), "loss/model") == [(1, 9.0), (2, 1.0), (3, 1.0), (4, 1.0)]


def test_tensorboard_can_be_left_out(tmp_path):
    study = tiny_study(tmp_path, tracking={"tensorboard": False})
    run_study(study, executor="loop", limit=1, console=QUIET)
    assert not (tmp_path / "results" / "tiny" / "tensorboard").exists()


def test_the_log_names_every_trial_from_start_to_end(finished):
    _, folder = finished
    said = lines(folder)
    assert [line["event"] for line in (said[0], said[-1])] == ["run_started", "run_ended"]
    assert {line["study"] for line in said} == {"tiny"}
    assert len({line["run"] for line in said}) == 1
    keys = set(Ledger(folder).trials()["trial_key"])
    for event in ("trial_started", "trial_ended"):
        assert {line["trial"] for line in said if line["event"] == event} == keys
    (bad,) = [line for line in said if line["level"] == "error"]
    assert (bad["event"], bad["status"], bad["error"]["message"]) == ("trial_ended", "failed", "no luck")
    assert bad["name"].startswith("toy BPR shuffled 0.5 at user_embedding seed 0")
    assert {line["stage"] for line in said if line["event"] == "stage_ended"} >= {"splits", "profiles", "embeddings", "targets", "trials"}


def test_a_run_that_breaks_says_so_in_its_last_line(tmp_path):
    study = tiny_study(tmp_path)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, executor="loop", console=QUIET, run_trial=interrupted)
    last = lines(tmp_path / "results" / "tiny")[-1]
    assert (last["event"], last["level"], last["outcome"]) == ("run_ended", "error", "KeyboardInterrupt")


def test_what_a_run_says_of_itself(finished):
    said = read_progress(study_folder(finished[0]))
    assert (said["stage"], said["done"], said["total"], said["failed"], said["running"]) == ("trials", 6, 6, 1, [])


def test_texts_that_are_being_written_are_shown_one_by_one(monkeypatch, tmp_path):
    clock = iter([0.0, 10.0, 20.0])
    progress = Progress(Console(file=io.StringIO()))
    progress.journal = Journal(str(tmp_path), "study")
    with progress.stage("profiles", 2):
        told = progress.texts("films, a-llm")
        monkeypatch.setattr("llmkt_ray.sweep.progress.time.monotonic", lambda: next(clock))
        told(4000, 6040)  # of an interrupted run
        told(4000, 6040)
        told(4100, 6040)
        monkeypatch.undo()
        assert "0 of 2 done, 4,100 of 6,040 texts of films, a-llm, about 6 min 28 s left" in progress._line()
        progress._snapshot(now=True)
        (shown,) = [line for line in progress_lines(read_progress(str(tmp_path))) if "texts" in line]
        assert shown.strip() == "4,100 of 6,040 texts of films, a-llm, about 6 min 28 s left"
        progress.artifact_made("films, a-llm")
        assert progress._line().startswith("1 of 2 done, 0 s so far")


@pytest.mark.parametrize("executor", ["loop", "ray"])
def test_every_executor_tells_of_texts_as_they_are_written(executor, monkeypatch):
    monkeypatch.setattr("llmkt_ray.sweep.tuner.selector", lambda asked: {})  # it would ask a cluster

    class Texts(TextsNode):
        def compute(self, store, progress):
            progress(3, 5)
            seen.append(dict(told._texts))

    seen, told = [], Progress(Console(file=io.StringIO()))
    node = Texts(SplitNode(DatasetConfig(name="toy"), 1, 0, 1.0, "k"), ProfileConfig(llm="template"), "t", TaskResources())
    worker = LoopExecutor() if executor == "loop" else RayExecutor(ResourcesConfig())
    worker.compute([node], None, told)
    assert [(one["label"], one["done"], one["total"]) for one in seen] == [("toy, template", 3, 5)]


def test_a_worker_s_lines_carry_its_trial(finished):
    set_trial("abc", "toy BPR treated")
    record = logging.LogRecord("any.library", logging.WARNING, __file__, 1, "odd %s", ("rating",), None)
    line = json.loads(JsonFormatter().format(record))
    assert (line["event"], line["level"], line["trial"], line["name"]) == ("odd rating", "warning", "abc", "toy BPR treated")


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "logs").write_text("a file where a folder should be")
    journal = Journal(str(tmp_path), "study")
    journal.event("anything")
    journal.flush()


def test_names_are_readable_different_and_never_a_path(tmp_path):
    study = tiny_study(tmp_path, profiles=[{"llm": "template", "name": "../../etc/passwd <b>"}])
    # With a line break, which a study file cannot have: names of files do not rest on that.
    hostile = study.model_copy(update={"profiles": (study.profiles[0].model_copy(update={"name": "../../etc/passwd <b>\n"}),)})
    specs = make_plan(hostile, store_of(hostile)).trials
    names = [file_name(spec) for spec in specs]
    assert len(set(names)) == len(specs)
    for spec, name in zip(specs, names, strict=True):
        assert "/" not in name
        assert ".." not in name.split("-")[0]
        assert FileStore(tmp_path).path(name).startswith(str(tmp_path))
        assert name.startswith(f"toy-BPR-{spec.arm}".replace("BPR-reference", "Pop-reference"))
    treated = next(spec for spec in specs if spec.arm == "treated")
    assert describe(treated) == f"toy BPR treated {treated.alpha:g} at user_embedding seed 0"


def test_rows_are_gathered_when_nobody_reads_them_any_more(tmp_path, monkeypatch):
    """The mirror reads single files until it ends: one that is gone by then would be a trial without its curve."""
    said = []

    @contextmanager
    def reading(*_):
        yield
        said.append("the mirror ended")

    monkeypatch.setattr(module, "mirrored", reading)
    monkeypatch.setattr(Ledger, "compact", lambda *_: said.append("compacted"))
    run_study(tiny_study(tmp_path), executor="loop", console=QUIET, limit=1)
    assert said == ["the mirror ended", "compacted"]
