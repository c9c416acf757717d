"""Where a dataset's files are: found by name or path, recognised by format, identified by their content."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from llmkt_ray.data.amazon import amazon_files, read_amazon
from llmkt_ray.data.atomic import atomic_files, read_atomic
from llmkt_ray.data.known import KNOWN
from llmkt_ray.data.movielens import movielens_files, read_movielens
from llmkt_ray.data.raw import Tables
from llmkt_ray.data.tables import parquet_files, read_parquet
from llmkt_ray.errors import DatasetError, unknown_name
from llmkt_ray.study import DatasetConfig

Files = dict[str, tuple[Path, ...]]


@dataclass(frozen=True)
class Reader:
    """One format: how to recognise a folder of it, and how to read it."""

    expects: str
    find: Callable[[Path, str], Files | None]
    read: Callable[[Files], Tables]
    spaced_lists: bool


READERS: dict[str, Reader] = {
    "parquet": Reader("interactions.parquet", lambda folder, name: parquet_files(folder), read_parquet, False),
    "atomic": Reader("<name>.inter", atomic_files, read_atomic, True),
    "movielens": Reader("ratings.dat", lambda folder, name: movielens_files(folder), read_movielens, False),
    "amazon": Reader("reviews as .json(.gz), .jsonl(.gz) or .csv(.gz)", lambda folder, name: amazon_files(folder), read_amazon, False),
}
"""Formats in the order in which a folder is tried."""


@dataclass(frozen=True)
class Source:
    """The files of a dataset, before they are read.

    Attributes:
        format: a key of `READERS`.
        files: role ("interactions", "items", "users") to its files.
        digest: SHA-256 of the format and of every file's role and content; paths and times do not matter.
    """

    format: str
    files: Files
    digest: str


def locate(config: DatasetConfig) -> Source:
    """Finds the files of a dataset.

    Raises:
        DatasetError: the name is not known and no path is given, the path does not exist, or no format is recognised in it.
    """
    known = KNOWN.get(config.name)
    if config.path is not None:
        folder = Path(config.path).expanduser()
        if not folder.is_dir():
            near = sorted(p.name for p in folder.parent.iterdir() if p.is_dir())[:12] if folder.parent.is_dir() else []
            hint = f"; folders beside it: {', '.join(near)}" if near else ""
            raise DatasetError(f"dataset {config.name!r}: path {config.path!r} is not a folder{hint}; give the folder that holds its files")
    elif known is not None and known.bundled:
        folder = bundled_folder(config.name)
    elif known is not None:
        raise DatasetError(
            f"dataset {config.name!r} is not part of any package; get it from {known.origin} and give its folder as `path`; "
            f"the folder should hold {known.files}"
        )
    else:
        raise DatasetError(
            unknown_name("dataset", config.name, KNOWN, "Or give `path`, a folder of RecBole's atomic files or of Parquet tables.")
        )
    for name, reader in READERS.items():
        files = reader.find(folder, config.name)
        if files is not None:
            return Source(name, files, _digest(name, files))
    wanted = ", ".join(reader.expects for reader in READERS.values())
    raise DatasetError(f"dataset {config.name!r}: {str(folder)!r} holds no interactions; expected one of: {wanted}")


def bundled_folder(name: str) -> Path:
    """Returns the folder of a dataset in RecBole's wheel, found without importing RecBole.

    Raises:
        DatasetError: RecBole is not installed, or its wheel lacks the dataset.
    """
    spec = importlib.util.find_spec("recbole")
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root) / "dataset_example" / name
        if folder.is_dir():
            return folder
    raise DatasetError(f"dataset {name!r} should be in the wheel of recbole 1.2.0, but is not; install recbole==1.2.0, or give `path`")


def _digest(format_name: str, files: Files) -> str:
    total = sha256(format_name.encode())
    for role in sorted(files):
        for path in files[role]:
            stat = path.stat()
            total.update(f"\n{role} {_file_digest(path, stat.st_size, stat.st_mtime_ns)}".encode())
    return total.hexdigest()


@lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    """Returns the SHA-256 of a file; size and time are only there so that a changed file is read again."""
    digest = sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
