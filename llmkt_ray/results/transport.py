"""A results folder brought from one place to another: what a reader needs, not what a run in progress leaves there."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmkt_ray.artifacts import FileStore
from llmkt_ray.errors import StorageError

_OF_A_RUN = ("checkpoints/", "phase1/", "tune/", "cache/", "run.")


def result_files(files: FileStore) -> list[str]:
    """Returns the names of the results in a folder; checkpoints, shared first phases, caches and locks are left out."""
    return [name for name in files.list("", recursive=True) if not name.startswith(_OF_A_RUN)]


def copy_results(source: FileStore, target: FileStore) -> None:
    """Copies results.

    Raises:
        StorageError: there are none, or they cannot be read or written.
    """
    names = result_files(source)
    if not names:
        raise StorageError(f"there are no results in {source.root}; run the study first")
    for name in names:
        data = source.read_bytes(name)
        if data is not None:
            target.write_bytes(name, data)


@contextmanager
def local_copy(folder: str) -> Iterator[Path]:
    """Gives a local folder with the results of `folder`; files made there are put back beside them, and files removed
    there are removed, when the block ends.

    Where the results are local, that is the folder itself.

    Raises:
        StorageError: there are no results, or they cannot be read or written.
    """
    if "://" not in folder:
        yield Path(folder)
        return
    remote = FileStore(folder)
    with tempfile.TemporaryDirectory(prefix="llmkt-results-") as here:
        local = FileStore(here)
        copy_results(remote, local)
        before = {name: (Path(here) / name).stat().st_mtime_ns for name in local.list("", recursive=True)}
        yield Path(here)
        for name in local.list("", recursive=True):
            if before.get(name) != (Path(here) / name).stat().st_mtime_ns:
                remote.write_bytes(name, (Path(here) / name).read_bytes())
        for name in before.keys() - set(local.list("", recursive=True)):
            remote.delete(name)
