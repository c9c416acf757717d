"""The ledger: one row a trial key, and the only memory of what is done.

A finished trial, failed ones included, is one Parquet file `ledger/trials/<trial key>.parquet`, written atomically
by whoever ran it. `compact` gathers many of them into `ledger/parts/`, one row group a trial. A key that is in
both (a crash between the two steps) counts once; a row recorded later wins. A file that cannot be read does not count:
its trial runs again. Pages carry checksums, so that a changed bit is no other number.
"""

import io
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from llmkt_ray.artifacts import FileStore
from llmkt_ray.errors import StorageError
from llmkt_ray.results import rows
from llmkt_ray.seeds import content_key
from llmkt_ray.training.spec import TrialResult

TRIALS, PARTS, SUGGESTIONS = "ledger/trials", "ledger/parts", "ledger/suggestions"
ROWS_A_GROUP = 25
"""Rows of a compacted part that are read together: one alone is slow to scan, all of them slow to pick one trial from."""

DAMAGE = (pa.ArrowException, OSError, ValueError)
"""What reading a damaged Parquet file raises."""


class Ledger:
    """The rows of one study.

    Args:
        folder: the study's results folder, or its URI.
    """

    def __init__(self, folder: str | Path) -> None:
        self.files = FileStore(folder)
        self._scalars: dict[str, pa.Table] = {}
        self._damaged: set[str] = set()

    def record(self, result: TrialResult, study_key: str) -> None:
        """Writes a trial's row; a row of the same key is replaced.

        Raises:
            StorageError: the disk is full or read-only; then there is no row.
        """
        sink = io.BytesIO()
        pq.write_table(rows.to_row(result, study_key), sink, compression="zstd", write_page_checksum=True)
        name = f"{TRIALS}/{result.spec.key}.parquet"
        self.files.write_bytes(name, sink.getvalue())
        self._scalars.pop(name, None)

    def has(self, trial_key: str) -> bool:
        """Says whether a file of this trial is there; cheap, and blind to compacted rows."""
        return self.files.exists(f"{TRIALS}/{trial_key}.parquet")

    def done(self) -> set[str]:
        """Returns the keys of all trials that have a readable row, failed ones included."""
        return {key for table in self._tables() for key in table.column("trial_key").to_pylist()}

    def trials(self) -> pd.DataFrame:
        """Returns one row a trial, in the order of the keys; columns as in `rows`, without the list columns.

        Raises:
            StorageError: a row was written by a later version of the ledger.
        """
        tables = self._tables()
        if not tables:
            return pd.DataFrame({name: pd.Series(dtype=object) for name in ("trial_key", "status", "arm", "dataset", "model")})
        frame: pd.DataFrame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
        return frame.drop_duplicates("trial_key").sort_values("trial_key", ignore_index=True)

    def epochs(self, trial_keys: Set[str] | None = None) -> pd.DataFrame:
        """Returns one row a trial and epoch, in the order of the keys; of these trials alone where they are given."""
        frames = [rows.epochs_frame(row) for row in self._all_rows("epoch:", trial_keys)]
        return pd.concat([f for f in frames if len(f)], ignore_index=True) if any(map(len, frames)) else pd.DataFrame({"trial_key": []})

    def curve(self, trial_key: str) -> pd.DataFrame:
        """Returns the epochs of one trial, see `epochs`; empty if it failed before the first.

        Raises:
            StorageError: the trial has no row.
        """
        return rows.epochs_frame(self._row(trial_key))

    def users(self, trial_key: str) -> pd.DataFrame:
        """Returns the per-user test metrics of one trial, empty if it failed.

        Raises:
            StorageError: the trial has no row.
        """
        return rows.users_frame(self._row(trial_key))

    def recommended(self, trial_key: str) -> np.ndarray:
        """Returns the top-k item indices of one trial, int32 `(n_evaluated, k)`, best first, in the order of `users`.

        Raises:
            StorageError: the trial has no row.
        """
        return rows.recommended_array(self._row(trial_key))

    def remove(self, trial_key: str) -> None:
        """Removes the row of a trial that has not been compacted, so that it runs again."""
        name = f"{TRIALS}/{trial_key}.parquet"
        self.files.delete(name)
        self._scalars.pop(name, None)

    def remove_damaged(self) -> None:
        """Removes the files that could not be read: their trials run again."""
        for name in self._damaged:
            self.files.delete(name)
        self._damaged.clear()

    def compact(self, at_least: int = 500) -> int:
        """Gathers the single files into one part if there are `at_least` as many; returns how many were gathered.

        The part is whole before any single file goes, so a crash at any moment loses nothing and doubles nothing.
        Failed trials stay single files: a later run may be asked to try them again.
        """
        singles = [(name, table) for name, table in self._read_new() if name.startswith(f"{TRIALS}/")]
        names = [name for name, table in singles if table.column("status")[0].as_py() != "failed"]
        if len(names) < at_least:
            return 0
        tables = [self._read(name) for name in names]
        schema = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
            for first in range(0, len(tables), ROWS_A_GROUP):
                group = [schema.empty_table(), *tables[first : first + ROWS_A_GROUP]]
                writer.write_table(pa.concat_tables(group, promote_options="permissive"), row_group_size=ROWS_A_GROUP)
        parts, digest = [name for name in self.row_files() if name.startswith(f"{PARTS}/")], content_key(names)
        number = max((int(Path(part).name.partition("-")[0]) for part in parts), default=0) + 1
        self.files.write_bytes(f"{PARTS}/{number:06d}-{digest}.parquet", sink.getvalue())
        # A part of the very same trials is one whose single files a crash left behind, or one that is replaced now.
        for name in [*names, *(part for part in parts if part.endswith(f"-{digest}.parquet"))]:
            self.files.delete(name)
            self._scalars.pop(name, None)
        return len(names)

    @property
    def damaged(self) -> tuple[str, ...]:
        """Files met so far that could not be read; their trials run again."""
        return tuple(sorted(self._damaged))

    def row_files(self) -> list[str]:
        """Returns the names of the files that hold rows, later ones first: the first row met of a trial is the one that counts."""
        found = [sorted(self.files.list(folder), reverse=folder == PARTS) for folder in (TRIALS, PARTS)]
        return [name for names in found for name in names if name.endswith(".parquet")]

    def _tables(self) -> list[pa.Table]:
        return [table for _, table in self._read_new()]

    def _read_new(self) -> list[tuple[str, pa.Table]]:
        """Returns every file with its scalar columns; each file is read once in this object's life."""
        names = self.row_files()
        new = [name for name in names if name not in self._scalars]
        if new:
            with ThreadPoolExecutor(8) as pool:
                for name, table in zip(new, pool.map(self._read_scalars, new), strict=True):
                    if table is None:
                        self._damaged.add(name)
                    else:
                        self._damaged.discard(name)
                        self._scalars[name] = table
        return [(name, self._scalars[name]) for name in names if name in self._scalars]

    def _read_scalars(self, name: str) -> pa.Table | None:
        file = self._open(name)
        if file is None:
            return None
        try:
            version, columns = int((file.schema_arrow.metadata or {}).get(b"llmkt_ledger", b"0")), rows.scalar_columns(file.schema_arrow)
        except DAMAGE:
            return None
        if version > rows.SCHEMA_VERSION:
            raise StorageError(
                f"{self.files.path(name)} was written by a later ledger (version {version}, this one reads up to {rows.SCHEMA_VERSION}); "
                "upgrade llmkt_ray"
            )
        try:
            return file.read(columns=columns)
        except DAMAGE:
            return None

    def _open(self, name: str) -> pq.ParquetFile | None:
        data = self.files.read_bytes(name)
        try:
            return None if data is None else pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        except DAMAGE:
            return None

    def _read(self, name: str) -> pa.Table:
        """Returns all of a file that is there."""
        with self._whole(name):
            return pq.ParquetFile(pa.BufferReader(self.files.read_bytes(name)), page_checksum_verification=True).read()

    @contextmanager
    def _whole(self, name: str) -> Iterator[None]:
        """Tells of a file whose scalars can be read, but not its epochs or users: it is looked at in parts, as it is large."""
        try:
            yield
        except DAMAGE as error:
            told = f"{self.files.path(name)} is damaged ({str(error).strip()}); delete it and run the study again: its trials run anew"
            raise StorageError(told) from error

    def _row(self, trial_key: str) -> pa.Table:
        single = f"{TRIALS}/{trial_key}.parquet"
        for name, table in [(single, None)] if self.has(trial_key) else self._read_new():
            keys: list[Any] = [trial_key] if table is None else table.column("trial_key").to_pylist()
            file = self._open(name) if trial_key in keys else None
            if file is not None:
                place = keys.index(trial_key)
                for group in range(file.num_row_groups):
                    size = file.metadata.row_group(group).num_rows
                    if place < size:
                        with self._whole(name):
                            return file.read_row_group(group).slice(place, 1)
                    place -= size
        raise StorageError(f"trial {trial_key!r} has no row in {self.files.root}; `llmkt status` lists what is done")

    def _all_rows(self, prefix: str, wanted: Set[str] | None = None) -> list[pa.Table]:
        """Returns one-row tables of trial_key and the columns of `prefix`, once a key, in the order of the keys; None: of all keys.

        Files without a key that is wanted are not opened.
        """
        found: dict[str, pa.Table] = {}
        for name, scalars in self._read_new():
            if wanted is not None and wanted.isdisjoint(scalars.column("trial_key").to_pylist()):
                continue
            file = self._open(name)
            if file is None:
                continue
            columns = ["trial_key", *(column for column in file.schema_arrow.names if column.startswith(prefix))]
            with self._whole(name):
                table = file.read(columns=columns)
            for index, key in enumerate(table.column("trial_key").to_pylist()):
                found.setdefault(key, table.slice(index, 1))
        return [found[key] for key in sorted(found) if wanted is None or key in wanted]
