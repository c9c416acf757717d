"""TensorBoard files: one folder a trial, written while it trains, so that `tensorboard --logdir <results>/tensorboard` is live.

Event files are written directly: TensorBoard's own writer keeps a thread and a queue for every trial. A resumed trial opens a
second file that begins with a mark at its epoch, at which TensorBoard forgets what the first file said of later epochs.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from llmkt_ray.artifacts import FileStore, storage_problem
from llmkt_ray.sweep.names import file_name
from llmkt_ray.training.spec import TrialResult, TrialSpec

FOLDER = "tensorboard"
_TAGS = {"loss_model": "loss/model", "loss_transfer": "loss/transfer", "gradient_ratio": "loss/gradient_ratio", "phase": "phase"}


class Board:
    """The event file of one trial.

    Args:
        folder: the study's results folder, a path or URI; a remote one gets the file when the trial ends.
        scratch: a local folder.
        spec: the trial.
    """

    def __init__(self, folder: str, scratch: Path, spec: TrialSpec) -> None:
        self._remote = FileStore(folder) if "://" in folder else None
        self._name = f"{FOLDER}/{file_name(spec)}/events.out.tfevents.{time.time_ns()}"
        self._path = (scratch if self._remote else Path(folder)) / self._name
        self._writer: Any = None

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Adds an epoch's losses and validation metrics.

        Raises:
            StorageError: the file cannot be written.
        """
        values = {_tag(name): float(value) for name, value in row.items() if name not in ("epoch", "duration_s")}
        self._write(int(row["epoch"]), values)

    def close(self, result: TrialResult) -> None:
        """Adds the test metrics of a finished trial, at its selected epoch, and closes the file.

        Raises:
            StorageError: the file cannot be written.
        """
        if self._writer is None:  # nothing was trained in epochs: a reference, or a trial that failed at once
            return
        self._write(result.best_epoch, {f"test/{name}": float(value) for name, value in result.test.items()})
        self._writer.close()
        self._writer = None
        if self._remote is not None:
            self._remote.write_bytes(self._name, self._path.read_bytes())
            self._path.unlink()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        known = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if math.isfinite(value)]
        if not known:
            return
        try:
            if self._writer is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = RecordWriter(open(self._path, "wb"))  # noqa: SIM115 - closed with the writer
                self._record(file_version="brain.Event:2")
                self._record(step=step, session_log=SessionLog(status=SessionLog.START))
            self._record(step=step, summary=Summary(value=known))
            self._writer.flush()
        except OSError as error:
            raise storage_problem(error, str(self._path)) from error

    def _record(self, **content: Any) -> None:
        self._writer.write(Event(wall_time=time.time(), **content).SerializeToString())


def _tag(name: str) -> str:
    return _TAGS.get(name) or (f"valid/{name.removeprefix('valid_')}" if name.startswith("valid_") else f"epoch/{name}")
