"""Part files: what an engine has finished so far, so that a restart computes only what is missing.

A row belongs to a (user, prompt hash): after a change of prompts, old parts no longer match and are not used.
"""

import io
import uuid

import pyarrow as pa
import pyarrow.parquet as pq

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.profiles.table import SCHEMA, ProfileRow, as_table


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

    def finished(self) -> dict[tuple[str, str], ProfileRow]:
        """Returns (user id, prompt hash) to its best row: a profile, else the error with the most attempts."""
        best: dict[tuple[str, str], ProfileRow] = {}
        for name in self._files.list(self._folder):
            data = self._files.read_bytes(name)
            table = pq.read_table(io.BytesIO(data)).cast(SCHEMA) if data is not None else pa.table({}, schema=SCHEMA)
            for values in table.to_pylist():
                row = ProfileRow(**values)
                key = (row.user_id, row.prompt_hash or "")
                if key not in best or _rank(row) > _rank(best[key]):
                    best[key] = row
        return best

    def delete(self) -> None:
        """Deletes the part files: their rows are in the artifact."""
        self._files.delete(self._folder)


def _rank(row: ProfileRow) -> tuple[bool, int]:
    return (row.profile is not None, row.attempts)
