"""Checkpoints that outlive their node: where results are remote, a copy of each trial's checkpoint lies beside them.

A trial writes its checkpoint to the disk of the machine it runs on. If that machine is taken (a spot node, a pod), the trial
starts again elsewhere and goes on from the copy: an epoch is lost, not a trial.
"""

from pathlib import Path

from llmkt_ray.artifacts import FileStore
from llmkt_ray.training.checkpoint import CheckpointFile

FOLDER = "checkpoints"


class SpareCheckpoint:
    """The copy of one trial's checkpoint, `<results folder>/checkpoints/<trial key>.pt`; nothing to do where results are local.

    Args:
        folder: the results folder, a path or URI.
        local: the folder of checkpoints on this machine.
        trial_key: the trial's key.
    """

    def __init__(self, folder: str, local: Path, trial_key: str) -> None:
        self._files = FileStore(folder) if "://" in folder else None
        self._name, self._local = f"{FOLDER}/{trial_key}.pt", local / f"{trial_key}.pt"
        self._seen = 0

    def fetch(self) -> None:
        """Brings the copy here, also over a checkpoint that is here: that may be of before the trial went on elsewhere."""
        if self._files is None:
            return
        data = self._files.read_bytes(self._name)
        if data is not None:
            FileStore(self._local.parent).write_bytes(self._local.name, data)
            self._seen = self._local.stat().st_mtime_ns

    def push(self) -> None:
        """Copies the checkpoint if it is newer than the copy.

        Raises:
            StorageError: the storage cannot be written.
        """
        if self._files is None:
            return
        try:
            written = self._local.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if written != self._seen:
            self._files.write_bytes(self._name, self._local.read_bytes())
            self._seen = written

    def written_ns(self) -> int | None:
        """Returns when the checkpoint was written that any machine can go on from, or None where there is none: asked by the driver.

        Raises:
            StorageError: the storage does not answer.
        """
        files, name = (FileStore(self._local.parent), self._local.name) if self._files is None else (self._files, self._name)
        return files.modified_ns(name)

    def delete(self) -> None:
        """Removes the checkpoint and its copy: the trial has its row."""
        CheckpointFile(self._local.parent, self._local.stem).delete()
        if self._files is not None:
            self._files.delete(self._name)
