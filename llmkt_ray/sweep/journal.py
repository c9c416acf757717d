"""Structured logs: one JSON object a line, with the trial's id wherever a trial is meant.

The driver keeps `<results>/logs/<run>.jsonl` (stages, artifacts, trials) and `<results>/progress.json`, which `llmkt status` reads
from another terminal. Workers write their lines to their own standard error: Ray keeps them, and its dashboard shows them.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

from llmkt_ray.artifacts import FileStore
from llmkt_ray.errors import StorageError

LOGS, PROGRESS = "logs", "progress.json"
REMOTE_INTERVAL_S = 30.0
"""Seconds between two pieces of the log on an object store, where a file cannot grow."""
SNAPSHOT_INTERVAL_S = 2.0
logger = logging.getLogger("llmkt_ray.trial")
logging.getLogger("llmkt_ray").addHandler(logging.NullHandler())  # a library is silent unless somebody listens
_current: dict[str, str] = {}
"""The trial that this process runs now: its key and its readable name."""


class Journal:
    """The log of one run, kept by its driver.

    Args:
        folder: the results folder, a path or URI.
        study: the study's name, in every line.
    """

    def __init__(self, folder: str, study: str) -> None:
        self._files = FileStore(folder)
        self.run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
        self._fields = {"study": study, "run": self.run}
        self._lock, self._pieces, self._waiting = threading.Lock(), 0, list[str]()
        self._flushed = self._snapped = time.monotonic()

    def event(self, event: str, level: str = "info", **fields: Any) -> None:
        """Adds a line; a log that cannot be written does not end a run: rows are what counts."""
        line = json.dumps({"time": _now(), "level": level, "event": event, **self._fields, **fields}, default=str)
        with self._lock:
            self._waiting.append(line)
        if self._files.is_local or time.monotonic() - self._flushed >= REMOTE_INTERVAL_S:
            self.flush()

    def snapshot(self, state: dict[str, Any], *, now: bool = False) -> None:
        """Writes where the run stands, at most every few seconds."""
        interval = SNAPSHOT_INTERVAL_S if self._files.is_local else REMOTE_INTERVAL_S
        if now or time.monotonic() - self._snapped >= interval:
            self._snapped = time.monotonic()
            self._try(PROGRESS, json.dumps({"updated": _now(), **self._fields, **state}).encode())

    def flush(self) -> None:
        """Writes the lines that wait."""
        with self._lock:
            lines, self._waiting = self._waiting, []
            self._flushed = time.monotonic()
            if not lines:
                return
            text = "".join(f"{line}\n" for line in lines).encode()
            if self._files.is_local:
                self._append(text)
            else:
                self._pieces += 1
                self._try(f"{LOGS}/{self.run}-{self._pieces:04d}.jsonl", text)

    def _append(self, text: bytes) -> None:
        path = self._files.path(f"{LOGS}/{self.run}.jsonl")
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "ab") as stream:
                stream.write(text)
        except OSError as error:
            _complain(error)

    def _try(self, name: str, data: bytes) -> None:
        try:
            self._files.write_bytes(name, data)
        except StorageError as error:
            _complain(error)


def read_progress(folder: str) -> dict[str, Any] | None:
    """Returns what the last run of a study said of itself, or None."""
    data = FileStore(folder).read_bytes(PROGRESS)
    try:
        found = None if data is None else json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def set_trial(key: str, name: str) -> None:
    """Says which trial this process runs from now on; every line it logs carries it."""
    _current.update(trial=key, name=name)


class JsonFormatter(logging.Formatter):
    """Formats a record of Python's logging as one line of JSON, with the trial that this process runs."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        fields = {"time": _now(), "level": record.levelname.lower(), "event": record.getMessage(), **_current, "pid": record.process}
        more = record.__dict__.get("fields")
        if isinstance(more, dict):
            fields |= more
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def log_as_json() -> None:
    """Sends this process's log, that of libraries included, to standard error as JSON; for Ray's workers."""
    root = logging.getLogger()
    if any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root.addHandler(handler)
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)


def here() -> dict[str, Any]:
    """Returns the machine and process of a line."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _complain(error: Exception) -> None:
    logging.getLogger(__name__).warning("the log cannot be written: %s", error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
