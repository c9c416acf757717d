"""A study from its file to its rows: what is missing is done, what is there is left alone."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Literal, Protocol

from rich.console import Console

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.results.card import finish_card, write_card
from llmkt_ray.results.folder import artifacts_folder, claim, locked, study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study import StudyConfig
from llmkt_ray.sweep import cluster
from llmkt_ray.sweep.execute import LoadArtifacts, RunTrial, Workplace, load_artifacts
from llmkt_ray.sweep.loop import LoopExecutor
from llmkt_ray.sweep.pipeline import Node, split_nodes
from llmkt_ray.sweep.plan import Plan, make_plan
from llmkt_ray.sweep.progress import Progress
from llmkt_ray.sweep.tuner import RayExecutor
from llmkt_ray.training.spec import TrialSpec
from llmkt_ray.training.trial import run_trial as train_and_test

ExecutorName = Literal["ray", "loop"]
COMPACT_AT = 500


class Executor(Protocol):
    """What makes artifacts and runs trials."""

    name: str

    def compute(self, nodes: Sequence[Node], store: ArtifactStore, progress: Progress) -> None:
        """Makes the artifacts of one stage."""

    def run(self, specs: Sequence[TrialSpec], place: Workplace, progress: Progress) -> None:
        """Runs trials; afterwards each has its row."""


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    Attributes:
        folder: the results folder.
        ran: trials that were run now.
        done: trials that have a row and did not fail.
        failed: trials that have a row and failed.
    """

    folder: str
    ran: int
    done: int
    failed: int


def store_of(study: StudyConfig) -> ArtifactStore:
    """Returns the study's artifact store."""
    return ArtifactStore(artifacts_folder(study), cache=Path(scratch_folder(study)) / "cache")


def scratch_folder(study: StudyConfig) -> str:
    """Returns a local folder for checkpoints and caches: the results folder itself where that is local."""
    folder = study_folder(study)
    return folder if "://" not in folder else str(Path(gettempdir()) / "llmkt" / study.key)


def run_study(
    study: StudyConfig,
    *,
    executor: ExecutorName = "ray",
    address: str | None = None,
    num_cpus: int | None = None,
    limit: int | None = None,
    retry_failed: bool = False,
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
        console: where progress is shown.
        run_trial, load: what trains a trial and what loads its artifacts, both picklable.

    Raises:
        StorageError: the folder is another study's, in use, or cannot be written.
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
    )
    with _interruptible(), locked(folder):
        claim(study)
        ledger = Ledger(folder)
        with cluster.cluster(address, num_cpus) if executor == "ray" else nullcontext():
            worker: Executor = LoopExecutor()
            if executor == "ray":
                worker = RayExecutor(study.resources)
                progress.workers = worker.workers()
            plan = make_artifacts(study, store, worker, progress)
            write_card(folder, study, card_facts(plan, store))
            specs = plan.trials if limit is None else spread(plan.trials, limit)
            if retry_failed:
                forget_failed(ledger)
            done = ledger.done()
            todo = [spec for spec in specs if spec.key not in done]
            if todo:
                with progress.stage("trials", len(todo)):
                    progress.expect(todo)
                    worker.run(todo, place, progress)
        ledger.compact(COMPACT_AT)
        finish_card(folder)
        rows = ledger.trials()
        failures = int((rows["status"] == "failed").sum())
        return RunSummary(folder=folder, ran=len(todo), done=len(rows) - failures, failed=failures)


def make_artifacts(study: StudyConfig, store: ArtifactStore, worker: Executor, progress: Progress) -> Plan:
    """Makes every missing artifact, stage by stage, and returns the plan.

    The splits come first: layers are resolved on the study's own data.
    """
    splits = [node for node in {node.key: node for node in split_nodes(study)}.values() if not store.find(node.kind, node.key)]
    if splits:
        with progress.stage("splits", len(splits)):
            worker.compute(splits, store, progress)
    plan = make_plan(study, store)
    stages: tuple[tuple[str, Sequence[Node]], ...] = (("profiles", plan.profiles), ("embeddings", plan.embeddings), ("targets", plan.targets))
    for name, nodes in stages:
        missing = [node for node in nodes if node.key not in plan.there]
        if missing:
            with progress.stage(name, len(missing)):
                worker.compute(missing, store, progress)
    return replace(plan, there=frozenset(node.key for node in plan.artifacts))


def spread(specs: Sequence[TrialSpec], limit: int) -> tuple[TrialSpec, ...]:
    """Returns at most `limit` trials that show the most: every arm before a second model or seed."""
    rank = {"treated": 0, "shuffled": 1, "alpha0": 2, "baseline": 3, "reference": 4}
    seen: dict[str, int] = {}
    keyed = []
    for spec in specs:
        seen[spec.arm] = seen.get(spec.arm, -1) + 1
        keyed.append(((seen[spec.arm], rank.get(spec.arm, 1)), spec))
    return tuple(spec for _, spec in sorted(keyed, key=lambda pair: pair[0])[:limit])


def forget_failed(ledger: Ledger) -> None:
    """Removes the rows of failed trials, so that they run again."""
    rows = ledger.trials()
    for key in rows.loc[rows["status"] == "failed", "trial_key"]:
        ledger.remove(key)


def card_facts(plan: Plan, store: ArtifactStore) -> dict[str, Any]:
    """Returns what the card says about the study's artifacts and cells."""
    datasets, profiles, embeddings, targets = [], [], [], []
    for split in plan.splits:
        notes = store.manifest("split", split.key).notes
        datasets.append(
            {
                "name": split.config.name,
                "split_key": split.key,
                "repetition": split.repetition,
                "train_share": split.train_share,
                "n_users": notes.get("n_users"),
                "n_items": notes.get("n_items"),
                "notes": notes,
            }
        )
    for profile in plan.profiles:
        notes = store.manifest("profiles", profile.key).notes
        where = {"dataset": profile.split.config.name, "split_key": profile.split.key, "llm": profile.config.label, "key": profile.key}
        profiles.append({**where, "is_llm": notes.get("is_llm"), "certificate": notes.get("certificate"), "notes": notes})
    for embedding in plan.embeddings:
        source = embedding.profiles
        where = {"dataset": source.split.config.name, "split_key": source.split.key, "llm": source.config.label}
        embeddings.append({**where, "encoder": embedding.config.encoder, "key": embedding.key, "identity": embedding.identity})
    for target in plan.targets:
        source = target.embedding.profiles
        where = {"dataset": source.split.config.name, "split_key": source.split.key, "llm": source.config.label}
        notes = store.manifest("targets", target.key).notes
        how = {"encoder": target.embedding.config.encoder, "reduction": target.config.method, "dims": target.dims}
        targets.append({**where, **how, "key": target.key, "notes": notes})
    return {
        "datasets": datasets,
        "profiles": profiles,
        "embeddings": embeddings,
        "targets": targets,
        "cells": [cell.facts() for cell in plan.cells],
        "planned_trials": len(plan.trials) + plan.searched_trials,
    }


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lets SIGTERM (a scheduler's or container's goodbye) end a run as Ctrl-C does: in order, the folder consistent."""
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
