"""The folder of one study's results: whose it is, and who is working in it.

`<storage>/<study name>/` holds `study.yaml` (the study as run, with its key), `card.json`, `ledger/`, `checkpoints/`,
`logs/` and `report.html`. A folder belongs to one study key; one process at a time runs a study in it.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import filelock
import yaml

from llmkt_ray.artifacts import FileStore, below, storage_problem
from llmkt_ray.errors import StorageError
from llmkt_ray.study import StudyConfig

LOCK, HOLDER, OWNER = "run.lock", "run.json", "study.yaml"
HEARTBEAT_S = 20.0
STALE_S = 120.0
"""On storage without file locks a holder that has not been heard of for this long is taken to be dead."""
LOOK_S = 1.0
"""Seconds between two looks whether such a holder is heard of."""
PROBE_S = 0.5
"""A lock that is held for less is that of somebody who looks whether it is held (`llmkt status`, `llmkt check`)."""
SETTLE_S = 1.0
"""There, of two that found nobody and wrote their names, the later one holds the folder: so long one waits before it looks again."""


def study_folder(study: StudyConfig) -> str:
    """Returns the path or URI of a study's results folder."""
    return below(study.storage, study.name)


def results_folders(storage: str) -> list[str]:
    """Returns the paths or URIs of every study's results folder in a storage.

    Raises:
        StorageError: the storage cannot be read.
    """
    files = FileStore(storage)
    return [below(storage, name) for name in files.folders() if files.exists(f"{name}/{OWNER}")]


def artifacts_folder(study: StudyConfig) -> str:
    """Returns the path or URI of the artifacts, shared by all studies of one storage."""
    return below(study.storage, "artifacts")


def beside(folder: str | Path, name: str) -> str:
    """Returns the path or URI of what lies beside a results folder; a URI keeps its options (`?endpoint_override=...`)."""
    if "://" not in str(folder):
        return str(Path(folder).absolute().parent / name)
    location, mark, options = str(folder).partition("?")
    return location.rstrip("/").rpartition("/")[0] + f"/{name}" + mark + options


def owner_problem(study: StudyConfig) -> str | None:
    """Returns why this study may not use its results folder (it holds another study's results), or None."""
    data = FileStore(study_folder(study)).read_bytes(OWNER)
    if data is None:
        return None
    try:
        owner = yaml.safe_load(data)
        key, before = owner["key"], owner["study"]
    except (yaml.YAMLError, TypeError, KeyError):
        return f"{study_folder(study)}/{OWNER} is not what a study leaves there; move the folder away or choose another `name` or `storage`"
    if key == study.key:
        return None
    after = study.model_dump(mode="json")
    changed = [
        name
        for name in after
        if before.get(name) != after[name] and name not in ("storage", "resources", "budget", "tracking", "description")
    ]
    return (
        f"the results folder {study_folder(study)} belongs to another study (key {key}, this one is {study.key}; "
        f"{', '.join(changed) or 'defaults'} changed); give this study another `name` or `storage`, or move the folder away"
    )


def claim(study: StudyConfig) -> None:
    """Makes the results folder this study's own, if it is nobody's yet.

    Raises:
        StorageError: it is another study's, or cannot be written.
    """
    problem = owner_problem(study)
    if problem:
        raise StorageError(problem)
    files = FileStore(study_folder(study))
    if not files.exists(OWNER):
        owner = {"key": study.key, "study": study.model_dump(mode="json")}
        files.write_bytes(OWNER, yaml.safe_dump(owner, sort_keys=False).encode())


def write_problem(root: str | Path) -> str | None:
    """Returns why nothing can be written below `root`, or None; makes no folder and leaves nothing behind.

    Where `root` is not there yet, the nearest folder above it that is there is tried.
    """
    try:
        files = FileStore(root)
        if files.is_local:
            there = next(path for path in (Path(files.path("")), *Path(files.path("")).parents) if path.exists())
            if not there.is_dir():
                return f"{root} cannot be used: {there} is a file, not a folder; choose another `storage` or `name`"
            files = FileStore(there)
        name = f".probe-{uuid.uuid4().hex[:8]}"
        files.write_bytes(name, b"0")
        files.delete(name)
    except StorageError as error:
        return str(error)
    return None


def holder(folder: str | Path) -> dict[str, Any] | None:
    """Returns {host, pid, started, command} of the process that is running the study, or None."""
    files = FileStore(folder)
    if files.is_local:
        if not Path(files.path(LOCK)).exists():
            return None
        probe = filelock.FileLock(files.path(LOCK))
        try:
            probe.acquire(timeout=0)
        except filelock.Timeout:
            return _read_holder(files) or {"host": "unknown host", "pid": "unknown pid", "started": "unknown time"}
        probe.release()
        return None
    found = _read_holder(files)
    return found if found and _age_s(found) < STALE_S else None


class Hold:
    """One run's hold of its folder.

    Attributes:
        lost: why the folder is another run's now; None while it is this run's. A process that was suspended for longer than
            `STALE_S` was taken to be dead.
    """

    lost: StorageError | None = None

    def check(self) -> None:
        """Returns if the folder is this run's still.

        Raises:
            StorageError: another run has taken it over.
        """
        if self.lost is not None:
            raise self.lost


@contextmanager
def locked(folder: str | Path, tell: Callable[[str], None] = lambda sentence: None) -> Iterator[Hold]:
    """Keeps other runs of the study out for as long as the block lasts.

    On a local disk the lock is the operating system's, so it ends with the process however that ends. Elsewhere it is a
    file with a heartbeat, which a later run takes over when it has gone silent; whoever works there asks the hold before each step.

    Args:
        folder: the results folder.
        tell: is told in one sentence if a silent holder is waited for.

    Raises:
        StorageError: another process is running this study.
    """
    files, hold = FileStore(folder), Hold()
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _now(), "id": uuid.uuid4().hex}
    if files.is_local:
        with _system_lock(files, me):
            yield hold
        return
    _await_silence(files, tell)
    stop, beats = threading.Event(), count()

    def write() -> None:
        files.write_bytes(HOLDER, json.dumps({**me, "alive": _now(), "beat": next(beats)}).encode())

    def other() -> StorageError | None:
        found = _read_holder(files)
        return _busy(folder, found) if found and found.get("id") != me["id"] else None

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            with suppress(StorageError):  # a storage that does not answer once: the next beat is in time still
                hold.lost = other()
                if hold.lost is not None:
                    return
                write()

    write()
    time.sleep(SETTLE_S)
    hold.lost = other()
    hold.check()
    thread = threading.Thread(target=beat, name="llmkt-lock", daemon=True)
    thread.start()
    try:
        yield hold
    finally:
        stop.set()
        thread.join()
        if (_read_holder(files) or me).get("id") == me["id"]:
            files.delete(HOLDER)


def _await_silence(files: FileStore, tell: Callable[[str], None]) -> None:
    """Returns when the folder has no holder, or one that has not been heard of for `STALE_S`.

    Nobody's clock is compared with another machine's: how old the holder's file is, the storage says, and whether it changes is
    looked at from here.

    Raises:
        StorageError: the holder lives.
    """
    last = files.read_bytes(HOLDER)
    found = _parsed(last)
    if found is None:
        return
    left = STALE_S - _silent_s(files)
    if left > 0:
        pid, host = found.get("pid"), found.get("host")
        tell(f"process {pid} on {host} was running this study; waiting up to {left:.0f} s to see whether it is alive")
    end = time.monotonic() + left
    while time.monotonic() < end:
        time.sleep(min(LOOK_S, left))
        now = files.read_bytes(HOLDER)
        if now is None:
            return
        if now != last:
            raise _busy(files.root, found)


def _silent_s(files: FileStore) -> float:
    """Returns how many seconds ago the holder's file was written, by the storage's own clock."""
    probe = f".probe-{uuid.uuid4().hex[:8]}"
    files.write_bytes(probe, b"0")
    now, written = files.modified_ns(probe), files.modified_ns(HOLDER)
    files.delete(probe)
    return 0.0 if now is None or written is None else (now - written) / 1e9


@contextmanager
def _system_lock(files: FileStore, me: dict[str, Any]) -> Iterator[None]:
    path = Path(files.path(LOCK))
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PROBE_S, poll_interval=0.01)
    except filelock.Timeout as error:
        raise _busy(files.root, _read_holder(files) or {}) from error
    except OSError as error:
        raise storage_problem(error, str(path)) from error
    try:
        files.write_bytes(HOLDER, json.dumps(me).encode())
        yield
    finally:
        files.delete(HOLDER)
        lock.release()


def _busy(folder: str | Path, other: dict[str, Any]) -> StorageError:
    return StorageError(f"{busy_problem(folder, other)}: finished trials stay")


def busy_problem(folder: str | Path, other: dict[str, Any]) -> str:
    """Returns the sentence about another process that is running the study."""
    pid, host, since = (other.get(name, "unknown") for name in ("pid", "host", "started"))
    return f"this study is being run already in {folder} (process {pid} on {host}, since {since}); wait for it or stop it, then run again"


def _read_holder(files: FileStore) -> dict[str, Any] | None:
    return _parsed(files.read_bytes(HOLDER))


def _parsed(data: bytes | None) -> dict[str, Any] | None:
    try:
        return None if data is None else dict(json.loads(data))
    except ValueError:
        return None


def _age_s(found: dict[str, Any]) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(str(found.get("alive", found["started"])))).total_seconds()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
