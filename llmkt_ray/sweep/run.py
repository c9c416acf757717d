"""A study from its file to its rows: what is missing is done, what is there is left alone."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import gettempdir
from typing import Literal, Protocol

from optuna.trial import FrozenTrial
from rich.console import Console

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.embeddings.limits import cut_sentences
from llmkt_ray.errors import BudgetSpent, ResourceError, SweepError
from llmkt_ray.results.card import finish_card, write_card
from llmkt_ray.results.folder import Hold, artifacts_folder, claim, locked, study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.seeds import content_key
from llmkt_ray.study import StudyConfig
from llmkt_ray.sweep import cluster
from llmkt_ray.sweep.check import refuse_impossible_targets
from llmkt_ray.sweep.execute import LoadArtifacts, RunTrial, Workplace, load_artifacts
from llmkt_ray.sweep.facts import card_facts
from llmkt_ray.sweep.journal import Journal, here
from llmkt_ray.sweep.llm_cost import accounts_of, money_spent
from llmkt_ray.sweep.loop import LoopExecutor
from llmkt_ray.sweep.mlflow_mirror import mirrored
from llmkt_ray.sweep.pilot import Meter, telling_first
from llmkt_ray.sweep.pipeline import EmbeddingNode, KnowledgeNode, Node, TargetNode, split_nodes
from llmkt_ray.sweep.plan import Plan, make_plan
from llmkt_ray.sweep.progress import Progress
from llmkt_ray.sweep.search import mirror, planned_round, rounds, told
from llmkt_ray.sweep.space import search_cells
from llmkt_ray.sweep.stale import refuse_stale_rows
from llmkt_ray.sweep.tuner import RayExecutor
from llmkt_ray.sweep.tuning import first_splits, tuned_models, tuning_specs
from llmkt_ray.training.spec import TrialSpec
from llmkt_ray.training.trial import run_trial as train_and_test

ExecutorName = Literal["ray", "loop"]
COMPACT_AT = 500
"""Single row files that are gathered into one part at a run's end."""


class Executor(Protocol):
    """What makes artifacts and runs trials."""

    name: str

    def compute(self, nodes: Sequence[Node], store: ArtifactStore, progress: Progress) -> None:
        """Makes the artifacts of one stage."""

    def run(self, batches: Iterator[Sequence[TrialSpec]], place: Workplace, progress: Progress) -> None:
        """Runs batches of trials, each asked for when the one before it is finished and every trial of it has its row."""


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    Attributes:
        folder: the results folder.
        ran: trials that were run now.
        done: trials that have a row and did not fail.
        failed: trials that have a row and failed.
        left_out: trials of the study, those of a search included, that wait for a larger budget.
        stopped: what is used up of the budget, in words; None if it was not hours or money that ended the run.
    """

    folder: str
    ran: int
    done: int
    failed: int
    left_out: int = 0
    stopped: str | None = None


def store_of(study: StudyConfig) -> ArtifactStore:
    """Returns the study's artifact store."""
    return ArtifactStore(artifacts_folder(study), cache=Path(scratch_folder(study)) / "cache")


def scratch_folder(study: StudyConfig) -> str:
    """Returns a local folder for checkpoints and caches: the results folder itself where that is local.

    Elsewhere it is one of this user and this results folder: two runs on a machine may be of one content, which is a study's key.
    """
    folder = study_folder(study)
    return folder if "://" not in folder else str(Path(gettempdir()) / f"llmkt-{os.getuid()}" / content_key([study.key, folder]))


def run_study(
    study: StudyConfig,
    *,
    executor: ExecutorName = "ray",
    address: str | None = None,
    num_cpus: int | None = None,
    limit: int | None = None,
    retry_failed: bool = False,
    dashboard: bool = False,
    console: Console | None = None,
    run_trial: RunTrial = train_and_test,
    load: LoadArtifacts = load_artifacts,
) -> RunSummary:
    """Runs what is missing of a study.

    Args:
        study: the study.
        executor: "ray", or "loop": one trial after the other in this process.
        address: of a Ray cluster; None: `RAY_ADDRESS` or a new local one.
        num_cpus: logical CPUs of a new local cluster.
        limit: at most this many trials, spread over arms and models; None: all.
        retry_failed: run trials again whose row says that they failed.
        dashboard: whether a new local cluster has Ray's dashboard, on loopback.
        console: where progress is shown.
        run_trial: what trains a trial; picklable.
        load: what loads a trial's artifacts; picklable.

    Raises:
        StorageError: the folder is another study's, in use, holds trials that were made from other inputs, or cannot be written.
        ResourceError: rows that are there were made on another kind of device.
        SweepError: trials were given out and have no row.
        LlmktError: a stage cannot be computed.
    """
    folder, store = study_folder(study), store_of(study)
    progress = Progress(console or Console(stderr=True))
    place = Workplace(
        study_key=study.key,
        folder=folder,
        artifacts=artifacts_folder(study),
        scratch=scratch_folder(study),
        device=cluster.device_of(study),
        threads=cluster.threads_of(study),
        run_trial=run_trial,
        load=load,
        tensorboard=study.tracking.tensorboard,
    )
    ledger = Ledger(folder)
    mirror = mirrored(folder, study.name, study.tracking.mlflow, progress.warn)
    with locked(folder, progress.warn) as progress.hold, _logged(study, progress), _compacted(ledger, progress.hold), mirror:
        claim(study)
        refuse_other_device(ledger, place.device)
        with cluster.cluster(address, num_cpus, dashboard) if executor == "ray" else nullcontext() as link, _interruptible():
            worker: Executor = LoopExecutor()
            if link:
                progress.link(link)
            if executor == "ray":
                cluster.refuse_unseen(folder)
                worker = RayExecutor(study.resources)
                progress.workers = worker.workers()
            make_splits(study, store, worker, progress)
            plan = make_plan(study, store)
            refuse_impossible_targets(plan, store)
            refuse_stale_rows(plan, ledger)
            if retry_failed:
                forget_failed(ledger)
            progress.meter = meter_of(study, plan, store, ledger)
            work = _Work(study, plan, store, worker, progress, place, ledger, smallest(limit, study.budget.trials))
            with closing(work.batches()) as batches:  # an interrupted stage ends here, not when the generator is collected
                worker.run(batches, place, progress)
            work.check_rows()
        finish_card(folder)
        rows = ledger.trials()
        failures = int((rows["status"] == "failed").sum())
        left_out = max(0, work.planned - len(rows)) if study.budget.is_set else 0
        return RunSummary(folder, work.ran, done=len(rows) - failures, failed=failures, left_out=left_out, stopped=work.stopped)


@contextmanager
def _compacted(ledger: Ledger, hold: Hold) -> Iterator[None]:
    """Gathers the rows' single files when the block has ended well: around the mirror, which reads them until it has ended."""
    yield
    hold.check()
    ledger.compact(COMPACT_AT)


@contextmanager
def _logged(study: StudyConfig, progress: Progress) -> Iterator[None]:
    """Keeps the run's log for as long as the block lasts; its last line says how the run ended."""
    progress.journal = journal = Journal(study_folder(study), study.name)
    journal.event("run_started", key=study.key, **here())
    try:
        yield
    except BaseException as error:
        journal.event("run_ended", "error", outcome=type(error).__name__, message=str(error))
        raise
    else:
        journal.event("run_ended", outcome="done")
    finally:
        journal.flush()


@dataclass
class _Work:
    """What is missing of a study, batch by batch: a batch is made when the one before it is finished.

    Attributes:
        limit: trials that may still be given out; None: all.
        given: keys of the trials given out so far.
        counted: keys of the trials that the limit has counted, those with a row included.
        stopped: what is used up, in words; None while the budget holds.
        repeated: suggested trials that were known already: of a small space, or a baseline's default.
        warned: what has been said about texts that encoders cut.
    """

    study: StudyConfig
    plan: Plan
    store: ArtifactStore
    worker: Executor
    progress: Progress
    place: Workplace
    ledger: Ledger
    limit: int | None
    given: set[str] = field(default_factory=set)
    counted: set[str] = field(default_factory=set)
    stopped: str | None = None
    repeated: int = 0
    warned: set[str] = field(default_factory=set)

    @property
    def ran(self) -> int:
        """Number of trials given out so far."""
        return len(self.given) - self.progress.meter.left_out

    def check_rows(self) -> None:
        """Returns if every trial that was given out has its row.

        Raises:
            SweepError: some have none, because Ray was ended from outside or workers have other versions than this process.
        """
        lost = len(self.given - self.ledger.done()) - self.progress.meter.left_out
        if lost > 0:
            raise SweepError(
                f"{lost} of {len(self.given)} trials were given out and have no row in {self.place.folder}: they were ended from outside, "
                "or workers have other versions of torch, recbole or llmkt_ray than this process; run the same command again to go on"
            )

    def batches(self) -> Generator[Sequence[TrialSpec]]:
        """Yields the trials known in advance, then the rounds of the searches."""
        is_search = self.study.search.kind == "optuna"
        if self.study.tuning.trials:
            tried = self._tuning()
            yield from self._missing(tried, "tuning")
            if self.limit == 0 or self.stopped or not self._all_there(spec.key for spec in tried):
                return
            self.plan = make_plan(self.study, self.store, tuned_models(self.study, self.plan.splits, self.ledger.trials()))
            refuse_impossible_targets(self.plan, self.store)
        # A limited search leaves room for its first suggestion: that is the treated trial at the claim's alpha.
        yield from self._missing(self.plan.trials, "trials", reserve=1 if is_search else 0)
        if is_search:
            yield from self._rounds()

    def _missing(self, specs: Sequence[TrialSpec], stage: str, reserve: int = 0) -> Iterator[Sequence[TrialSpec]]:
        """Yields those of the trials that have no row, as one batch, when their artifacts are there; nothing if none is missing.

        Args:
            specs: the trials.
            stage: their name in the progress.
            reserve: trials of a limit that later batches are left.
        """
        if self.limit is not None or self.study.budget.is_set:
            specs = telling_first(specs, self.study.transfer)
        if self.limit is not None:
            specs = self._within_limit(specs, max(0, self.limit - reserve))
        done = self.ledger.done()
        todo = [spec for spec in specs if spec.key not in done]
        if not todo:
            return
        self.progress.hold.check()
        self.ledger.remove_damaged()
        try:
            made = make_targets_for(todo, self.plan, self.store, self.worker, self.progress)
            self.plan = replace(self.plan, there=self.plan.there | made)  # the rounds to come do not ask for it again
        except BudgetSpent as spent:
            self.stopped = str(spent)
        self._write_card()
        if self.stopped:
            return
        self.given |= {spec.key for spec in todo}
        with self.progress.stage(stage, len(todo)):
            self.progress.expect(todo)
            yield todo
        shutil.rmtree(self.place.phase1, ignore_errors=True)
        self.stopped = self.progress.meter.spent()

    def _within_limit(self, specs: Sequence[TrialSpec], left: int) -> list[TrialSpec]:
        """Returns the first trials, of which `left` are new to the limit: one of two stages (tuned, and a baseline) counts once."""
        new = [spec.key for spec in specs if spec.key not in self.counted][:left]
        self.counted |= set(new)
        self.limit = None if self.limit is None else self.limit - len(new)
        return [spec for spec in specs if spec.key in self.counted]

    def _all_there(self, keys: Iterable[str]) -> bool:
        """Says whether all these trials have rows. What is chosen from rows waits for all of them: a lost one would change the choice."""
        return self.ledger.done().issuperset(keys)

    def _planned(self) -> set[str]:
        """Returns the keys of the trials known in advance."""
        return {spec.key for spec in (*self.plan.trials, *(self._tuning() if self.study.tuning.trials else ()))}

    @property
    def planned(self) -> int:
        """Number of trials of the whole study; suggestions that repeat others are known as such when they are made."""
        return len(self._planned()) + self.plan.searched_trials - self.repeated

    def _write_card(self) -> None:
        facts = card_facts(self.plan, self.store)
        write_card(self.place.folder, self.study, facts | {"planned_trials": self.planned})
        for sentence in cut_sentences(facts["embeddings"]):
            if sentence not in self.warned:
                self.warned.add(sentence)
                self.progress.warn(sentence)

    def _tuning(self) -> list[TrialSpec]:
        """Returns the trials that choose the base hyper-parameters of every dataset and model."""
        every = product(first_splits(self.plan.splits), self.study.models)
        specs = [spec for split, model in every for _, specs in tuning_specs(self.study, split, model) for spec in specs]
        return list({spec.key: spec for spec in specs}.values())

    def _rounds(self) -> Iterator[Sequence[TrialSpec]]:
        """Yields the rounds of all searches of the study, one round of every search at a time."""
        study, cells, files = self.study, search_cells(self.plan), self.ledger.files
        history: dict[str, list[FrozenTrial]] = {cell.key: [] for cell in cells}
        every, known = rounds(study.search), self._planned()
        for number, (first, count) in enumerate(every, 1):
            new = {cell.key: planned_round(files, study, cell, first, count, history[cell.key]) for cell in cells}
            of_cells = [(cell, params, new[cell.key].rungs) for cell in cells for params in new[cell.key].suggestions]
            specs = {spec.key: spec for cell, params, rungs in of_cells for spec in cell.specs(study, params, rungs)}
            self.repeated += count * len(cells) * study.seeds - len(specs.keys() - known)
            known |= specs.keys()
            yield from self._missing(list(specs.values()), f"search, round {number} of {len(every)}")
            if not self._all_there(specs):
                return
            rows = self.ledger.trials().set_index("trial_key")
            for cell in cells:
                history[cell.key] += told(study, cell, new[cell.key].suggestions, rows, self.ledger, new[cell.key].rungs)
            problem = mirror(study.search.storage, self.place.folder, study, {cell.name: history[cell.key] for cell in cells})
            if problem:
                self.progress.warn(problem)
            if self.limit == 0 or self.stopped:
                return
        if self.repeated and self.given:
            self._write_card()


def make_splits(study: StudyConfig, store: ArtifactStore, worker: Executor, progress: Progress) -> None:
    """Makes the splits that are missing. They come first: layers are resolved on the study's own data."""
    splits = [node for node in {node.key: node for node in split_nodes(study)}.values() if not store.find(node.kind, node.key)]
    if splits:
        with progress.stage("splits", len(splits)):
            worker.compute(splits, store, progress)


def make_targets_for(specs: Sequence[TrialSpec], plan: Plan, store: ArtifactStore, worker: Executor, progress: Progress) -> set[str]:
    """Makes the missing targets of these trials, stage by stage, with the profiles and embeddings that they come from.

    Returns:
        The keys of all that was made.

    Raises:
        BudgetSpent: what may be spent on language models ends before all profiles are whole.
    """
    wanted = {key for spec in specs for key in (spec.targets_key, spec.twin_key)}
    targets = [node for node in plan.targets if node.key in wanted and node.key not in plan.there]
    read = {spec.knowledge_key for spec in specs}
    knowledge = [node for node in plan.knowledge if node.key in read and node.key not in plan.there]
    wanting: list[TargetNode | KnowledgeNode] = [*targets, *knowledge]
    embeddings = {node.embedding.key: node.embedding for node in wanting if node.embedding.key not in plan.there}
    of_texts = [node.profiles for node in embeddings.values() if isinstance(node, EmbeddingNode)]
    profiles = {node.key: node for node in of_texts if node.key not in plan.there}
    items = {node.items.key: node.items for node in knowledge if node.items.key not in plan.there}
    accounts, before = accounts_of(plan, store) if profiles or items else None, money_spent(plan, store)
    stages: tuple[tuple[str, Sequence[Node]], ...] = (
        ("profiles", tuple(replace(node, accounts=accounts) for node in profiles.values())),
        ("item texts", tuple(replace(node, accounts=accounts) for node in items.values())),
        ("embeddings", tuple(embeddings.values())),
        ("knowledge", knowledge),
        ("targets", targets),
    )
    try:
        for name, nodes in stages:
            if nodes:
                with progress.stage(name, len(nodes)):
                    worker.compute(nodes, store, progress)
    finally:
        progress.meter.pay(accounts.money - before if accounts else 0.0)
    return {node.key for _, nodes in stages for node in nodes}


def smallest(*limits: int | None) -> int | None:
    """Returns the smallest of the limits that are there, None if none is."""
    return min((limit for limit in limits if limit is not None), default=None)


def meter_of(study: StudyConfig, plan: Plan, store: ArtifactStore, ledger: Ledger) -> Meter:
    """Returns the meter of a run: with the trial time of earlier runs on it, and what the profiles have cost."""
    rows = ledger.trials()
    spent_s = float(rows["wall_s"].sum()) if "wall_s" in rows else 0.0
    return Meter(study.budget, study.resources, spent_s, money_spent(plan, store))


def refuse_other_device(ledger: Ledger, device: str) -> None:
    """Returns if the finished trials ran on the kind of device that this run uses: their arms are compared with each other.

    Raises:
        ResourceError: some ran on the other kind.
    """
    rows = ledger.trials()
    if rows.empty:
        return
    on = rows.loc[rows["status"] == "done", "facts"].map(lambda facts: json.loads(facts)["device_type"])
    others = on[on != device]
    if len(others):
        raise ResourceError(
            f"{len(others)} trials of this study ran on {others.iloc[0]!r}, but resources.trial asks for {device!r} now: arms of one study "
            "must share the kind of device; set resources.trial.gpus as it was, or give the study another `name`"
        )


def forget_failed(ledger: Ledger) -> None:
    """Removes the rows of failed trials, so that they run again."""
    rows = ledger.trials()
    for key in rows.loc[rows["status"] == "failed", "trial_key"]:
        ledger.remove(key)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lets SIGTERM (a scheduler's or container's goodbye) end a run as Ctrl-C does: in order, the folder consistent.

    Entered after Ray is connected: Ray sets a handler of its own, which would abort the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
