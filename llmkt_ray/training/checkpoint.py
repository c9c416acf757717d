"""Checkpoints at epoch boundaries: one file a trial, written whole or not at all, read with `weights_only=True`.

A file is a line with the SHA-256 of what follows, and then what `torch.save` writes: torch itself reads a file with a changed bit
as if nothing had happened to it, and the trial's row would be another one.
"""

import io
import os
import pickle
import time
import uuid
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from llmkt_ray.artifacts import storage_problem

VERSION = 3
_DIGEST_BYTES = 65
INTERVAL_S = 5.0
"""Seconds between two checkpoints at the least: an epoch that is shorter is cheaper to repeat than to save."""


class CheckpointFile:
    """The checkpoint of one trial, `<folder>/<trial key>.pt`.

    Args:
        folder: where checkpoints are kept; made if absent.
        trial_key: the trial's content key; a file of another trial or version is ignored.
        interval_s: seconds between two checkpoints at the least; 0 saves at every epoch boundary.
    """

    def __init__(self, folder: Path, trial_key: str, interval_s: float = INTERVAL_S) -> None:
        self.path = Path(folder) / f"{trial_key}.pt"
        self._key, self._interval_s = trial_key, interval_s
        self._saved_at = time.monotonic()

    def save(self, epoch: int, state: Callable[[], dict[str, Any]]) -> None:
        """Saves `state()` after epoch `epoch`, unless the last checkpoint is too fresh.

        Raises:
            StorageError: the disk is full or read-only.
        """
        if time.monotonic() - self._saved_at < self._interval_s:
            return
        buffer = io.BytesIO()
        torch.save({"version": VERSION, "key": self._key, "epoch": epoch, "state": state()}, buffer)
        partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(partial, "wb") as stream:
                    stream.write(_digest(buffer.getbuffer()))
                    stream.write(buffer.getbuffer())
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(partial, self.path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise storage_problem(error, str(self.path)) from error
        self._saved_at = time.monotonic()

    def load(self, device: torch.device) -> tuple[int, dict[str, Any]] | None:
        """Returns (epoch, state) of the checkpoint, or None where there is none that can be used.

        A damaged file counts as none: the trial then starts again, with the same outcome.
        """
        try:
            with open(self.path, "rb") as stream:
                digest, content = stream.readline(_DIGEST_BYTES), stream.read()
        except OSError:
            return None
        if digest != _digest(content):
            return None
        try:
            saved = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError):  # whole, but not what we write
            return None
        if not isinstance(saved, dict) or (saved.get("version"), saved.get("key")) != (VERSION, self._key):
            return None
        return int(saved["epoch"]), saved["state"]

    def delete(self) -> None:
        """Removes the checkpoint, and what processes that were killed while they wrote it have left; absent is fine."""
        self.path.unlink(missing_ok=True)
        for partial in self.path.parent.glob(f".{self.path.name}.*.partial"):
            partial.unlink(missing_ok=True)


def _digest(content: bytes | memoryview) -> bytes:
    return sha256(content).hexdigest().encode() + b"\n"
