"""Parquet folders: `interactions`, and where they exist `items` and `users`, each one file or parts of one table."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmkt_ray.data.raw import Tables, shown
from llmkt_ray.errors import DatasetError

ROLES = ("interactions", "items", "users")


def parquet_files(folder: Path) -> dict[str, tuple[Path, ...]] | None:
    """Returns the Parquet files of a folder by role, or None where there are no interactions.

    A role is `<role>.parquet`, or its parts in order of their names: `<role>_*.parquet`, `<role>-*.parquet` or `<role>/*.parquet`.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for role in ROLES:
        whole = folder / f"{role}.parquet"
        parts = [whole] if whole.is_file() else [p for pattern in ("_*", "-*", "/*") for p in folder.glob(f"{role}{pattern}.parquet")]
        if parts:
            found[role] = tuple(sorted(parts))
    return found if "interactions" in found else None


def read_parquet(files: dict[str, tuple[Path, ...]]) -> Tables:
    """Reads a Parquet folder.

    Raises:
        DatasetError: a file is not Parquet, or parts of one table have different columns.
    """
    tables = {role: _read(paths) for role, paths in files.items()}
    return Tables(interactions=tables["interactions"], items=tables.get("items"), users=tables.get("users"))


def _read(paths: tuple[Path, ...]) -> pa.Table:
    parts = []
    for path in paths:
        try:
            parts.append(pq.ParquetFile(path).read())
        except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DatasetError(f"{path} cannot be read as Parquet: {shown([error])}; write it anew") from error
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DatasetError(
            f"the parts of {paths[0].parent} ({shown(p.name for p in paths)}) do not make one table: {shown([error])}"
        ) from error
