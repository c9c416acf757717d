"""Part files: what an engine has finished so far, so that a restart computes only what is missing.

A row belongs to a (user, prompt hash): after a change of prompts, old parts no longer match and are not used.
"""

import io
import uuid
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.profiles.table import SCHEMA, ProfileRow, as_table

_NO_MORE = 1_000
"""Attempts of a row that must not be tried again, more than any study allows."""


class Parts:
    """The part files of one profiles key.

    Args:
        store: where artifacts are kept; parts lie beside them, under `profile_parts/<key>/`.
        key: of the profiles that are being made.
    """

    def __init__(self, store: ArtifactStore, key: str) -> None:
        self._files = store.files
        self._folder = f"profile_parts/{key}"

    def append(self, rows: list[ProfileRow]) -> None:
        """Writes one part file; it is there whole or not at all.

        Raises:
            StorageError: the disk is full or read-only.
        """
        if rows:
            sink = io.BytesIO()
            pq.write_table(as_table(rows), sink, compression="zstd")
            self._files.write_bytes(f"{self._folder}/part-{uuid.uuid4().hex[:12]}.parquet", sink.getvalue())

    def answers(self) -> dict[tuple[str, str], list[ProfileRow]]:
        """Returns (user id, prompt hash) to its rows, one an attempt, the best last: a profile, else the error with the most attempts."""
        answers: dict[tuple[str, str], list[ProfileRow]] = {}
        for name in self._files.list(self._folder):
            data = self._files.read_bytes(name)
            table = pq.read_table(io.BytesIO(data)).cast(SCHEMA) if data is not None else pa.table({}, schema=SCHEMA)
            for values in table.to_pylist():
                row = ProfileRow(**values)
                answers.setdefault((row.user_id, row.prompt_hash or ""), []).append(row)
        return {key: sorted(rows, key=_rank) for key, rows in answers.items()}

    def finished(self) -> dict[tuple[str, str], ProfileRow]:
        """Returns (user id, prompt hash) to its best row."""
        return {key: rows[-1] for key, rows in self.answers().items()}

    def forget(self, user_id: str, error: str) -> int:
        """Replaces a user's rows by `error`, so that the user is not asked about again; returns how many held a text.

        Raises:
            StorageError: a part file cannot be written.
        """
        texts = 0
        for name in self._files.list(self._folder):
            data = self._files.read_bytes(name)
            rows = [ProfileRow(**values) for values in pq.read_table(io.BytesIO(data)).to_pylist()] if data is not None else []
            # The hash stays until the row is in the artifact: it says which prompt is not to be asked.
            changed = [replace(row, profile=None, error=error, attempts=_NO_MORE) if row.user_id == user_id else row for row in rows]
            if changed != rows:
                texts += sum(row.user_id == user_id and row.profile is not None for row in rows)
                sink = io.BytesIO()
                pq.write_table(as_table(changed), sink, compression="zstd")
                self._files.write_bytes(name, sink.getvalue())
        return texts

    def delete(self) -> None:
        """Deletes the part files: their rows are in the artifact."""
        self._files.delete(self._folder)


def _rank(row: ProfileRow) -> tuple[bool, int]:
    return (row.profile is not None, row.attempts)
