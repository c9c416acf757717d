"""One trial from its spec to its row: the very same function in a plain loop and in a Ray worker.

Whatever a trial raises becomes its row; only a storage that cannot be written stops the sweep, because then no row
can be kept. The row is written here, where the trial ran: it is there even if the driver dies in that moment.
"""

import resource
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.knowledge import Knowledge
from llmkt_ray.embeddings.targets import Targets
from llmkt_ray.errors import StorageError
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep.boards import Board
from llmkt_ray.sweep.journal import here, logger, set_trial
from llmkt_ray.sweep.names import describe
from llmkt_ray.sweep.spare import SpareCheckpoint
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec

OnEpoch = Callable[[dict[str, Any]], None]


class RunTrial(Protocol):
    """The signature of `llmkt_ray.training.trial.run_trial`."""

    def __call__(
        self,
        spec: TrialSpec,
        artifacts: TrialArtifacts,
        *,
        device: str = "cpu",
        threads: int = 1,
        checkpoint_dir: Path | None = None,
        phase1_dir: Path | None = None,
        stages_dir: Path | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> TrialResult:
        """Trains and tests one trial."""


LoadArtifacts = Callable[[TrialSpec, str, str], TrialArtifacts]


@dataclass(frozen=True)
class Workplace:
    """Where trials of a study work: the same in every process.

    Attributes:
        study_key: the study's key, for the rows.
        folder: the results folder, a path or URI.
        artifacts: the artifact store's root, a path or URI.
        scratch: a local folder for checkpoints and for copies of remote artifacts.
        device: "cpu" or "cuda".
        threads: torch threads a trial.
        run_trial: what trains a trial.
        load: what loads a trial's artifacts from (spec, artifacts root, scratch).
        tensorboard: whether each trial leaves an event file.
    """

    study_key: str
    folder: str
    artifacts: str
    scratch: str
    device: str
    threads: int
    run_trial: RunTrial
    load: LoadArtifacts
    tensorboard: bool = False

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, each named by its trial key: any worker that sees this disk can go on from them."""
        return Path(self.scratch) / "checkpoints"

    @property
    def phase1(self) -> Path:
        """The folder of the ends of shared first phases, each named by its phase-1 key; emptied after every batch of trials."""
        return Path(self.scratch) / "phase1"


def execute(spec: TrialSpec, place: Workplace, on_epoch: OnEpoch | None = None, *, shares_phase1: bool = False) -> TrialResult:
    """Runs one trial, writes its row, and returns its result without the arrays a driver does not need.

    Args:
        spec: the trial.
        place: where it works.
        on_epoch: called with each epoch's row.
        shares_phase1: whether other trials of the batch differ from it in phase 2 alone.

    Raises:
        StorageError: the row or a checkpoint cannot be written.
    """
    started, cpu = time.perf_counter(), time.process_time()
    spare = SpareCheckpoint(place.folder, place.checkpoints, spec.key)
    board = Board(place.folder, Path(place.scratch), spec) if place.tensorboard else None
    set_trial(spec.key, describe(spec))
    logger.info("trial begins", extra={"fields": here()})

    def epoch_ended(row: dict[str, Any]) -> None:
        spare.push()
        if board is not None:
            board.epoch(row)
        logger.info("epoch", extra={"fields": row})
        if on_epoch is not None:
            on_epoch(row)

    try:
        spare.fetch()
        result = place.run_trial(
            spec,
            place.load(spec, place.artifacts, place.scratch),
            device=place.device,
            threads=place.threads,
            checkpoint_dir=place.checkpoints,
            phase1_dir=place.phase1 if shares_phase1 else None,
            stages_dir=place.phase1,
            on_epoch=epoch_ended,
        )
        result = replace(result, facts={**result.facts, "device_type": place.device})
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001 - a failing trial is a row with its reason, and the others go on
        measures = {
            "wall_s": time.perf_counter() - started,
            "cpu_s": time.process_time() - cpu,
            "peak_rss_bytes": peak_rss_bytes(),
            "host": socket.gethostname(),
            "device": place.device,
        }
        result = failed(spec, type(error).__name__, str(error), traceback.format_exc(), measures)
        logger.exception("trial failed")
    Ledger(place.folder).record(result, place.study_key)
    spare.delete()  # not earlier: where the row cannot be written, the trial is not lost but goes on from here
    if board is not None:
        board.close(result)
    logger.info("trial ends", extra={"fields": {"status": result.status, "best_epoch": result.best_epoch}})
    return replace(result, users={}, recommended=None)


def failed(spec: TrialSpec, kind: str, message: str, trace: str = "", measures: dict[str, Any] | None = None) -> TrialResult:
    """Returns the result of a trial that failed."""
    return TrialResult(spec=spec, status="failed", error={"kind": kind, "message": message, "traceback": trace}, measures=measures or {})


def peak_rss_bytes() -> int:
    """Returns the largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def load_artifacts(spec: TrialSpec, artifacts: str, scratch: str) -> TrialArtifacts:
    """Returns what a trial reads; arrays are memory-mapped, and kept for the next trial of this process.

    Raises:
        ArtifactError: an artifact is missing or damaged.
    """
    return TrialArtifacts(
        data=_data(artifacts, scratch, spec.split_key),
        targets=None if spec.targets_key is None else _targets(artifacts, scratch, spec.targets_key),
        twin=None if spec.twin_key is None else _targets(artifacts, scratch, spec.twin_key),
        knowledge=None if spec.knowledge_key is None else _knowledge(artifacts, scratch, spec.knowledge_key),
    )


@lru_cache(maxsize=1)
def _store(artifacts: str, scratch: str) -> ArtifactStore:
    return ArtifactStore(artifacts, cache=Path(scratch) / "cache")


@lru_cache(maxsize=4)
def _data(artifacts: str, scratch: str, key: str) -> PreparedData:
    return PreparedData.load(_store(artifacts, scratch), key)


@lru_cache(maxsize=16)
def _targets(artifacts: str, scratch: str, key: str) -> Targets:
    return Targets.load(_store(artifacts, scratch), key)


@lru_cache(maxsize=4)
def _knowledge(artifacts: str, scratch: str, key: str) -> Knowledge:
    return Knowledge.load(_store(artifacts, scratch), key)
