"""Profiles that somebody else wrote: a Parquet file, or a folder with a manifest that says what they were written from."""

import json
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from llmkt_ray.data.leaks import DECLARED_COLUMN, declare
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.raw import id_column, shown
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.base import Job, Written
from llmkt_ray.profiles.table import ProfileRow, as_table
from llmkt_ray.section import Section

PROFILES_FILE = "profiles.parquet"
MANIFEST_FILE = "manifest.json"
FORMAT = "llmkt_ray.profiles/1"


class FileManifest(Section):
    """`manifest.json` beside `profiles.parquet`: what the texts are (docs/profiles.md)."""

    format: str = FORMAT
    llm: str
    """Who wrote the texts, for example "gpt-4o-mini"."""
    is_llm: bool = True
    """False where no language model did."""
    prompt_version: str = "unknown"
    split: str | None = None
    """The split they were written from: its key, the `train_digest` of its notes, or "column" for the dataset's own column."""
    notes: dict[str, Any] = {}
    """Anything else worth keeping; shown, never interpreted."""


@dataclass(frozen=True)
class _Source:
    table: Path
    manifest: Path | None


class FileEngine:
    """Reads profiles from `path`.

    Args:
        path: a Parquet file with `user_id` and `profile` (string or whole-number ids), or a folder of `profiles.parquet` and, if
            there is one, `manifest.json`.
        declared: what the study says the texts were written from, for files without a manifest.
    """

    draws = False

    def __init__(self, path: str, declared: str | None) -> None:
        self._path = path
        self._declared = declared
        self._source = _locate(Path(path).expanduser())
        self._manifest = self._read_manifest()
        self.is_llm = self._manifest.is_llm

    def reads_full_history(self, split_key: str) -> bool:
        """Returns whether the texts are of all train rows, whatever share of them models learn from: a digest and the column name those."""
        return self._manifest.split != split_key

    def identity(self) -> dict[str, Any]:
        """Returns the digests of the files and what is declared; where they lie does not matter."""
        return {
            "engine": "file",
            "sha256": _digest(self._source.table),
            "manifest": self._manifest.model_dump(mode="json"),
        }

    def write(self, data: PreparedData, job: Job) -> Written:
        """Returns the file's texts, one row for every user of the split; those without a text get a row with the reason.

        Raises:
            ProfileError: the profiles are declared for another split, the file cannot be read, or a user has several.
        """
        certificate = declare(data, self._manifest.split)
        texts = read_texts(self._source.table, "user_id", "profile")
        users = [str(token) for token in data.user_tokens]
        absent = [user for user in users if user not in texts]
        empty = [user for user in users if user in texts and texts[user] is None]
        unknown = sorted(set(texts) - set(users))
        read = data.train_full if self.reads_full_history(data.key) else data.train
        sizes = np.bincount(read.user, minlength=data.n_users).tolist()
        rows = [
            ProfileRow(
                user_id=user,
                profile=texts.get(user),
                llm=self._manifest.llm,
                prompt_version=self._manifest.prompt_version,
                history_size=size,
                prompt_hash=sha256(text.encode()).hexdigest() if (text := texts.get(user)) else None,
                error=None
                if text
                else "empty: the file's text for this user is empty"
                if user in texts
                else "missing: the file has no row for this user",
            )
            for user, size in zip(users, sizes, strict=True)
        ]
        warnings = []
        if absent or empty:
            warnings.append(
                f"{len(absent):,} users have no profile in the file and {len(empty):,} an empty one; they stay out of the transfer loss"
            )
        if unknown:
            warnings.append(f"{len(unknown):,} ids of the file are not users of the split and are left out: {shown(unknown, 4)}")
        job.progress(len(users), len(users))
        return Written(as_table(rows), certificate, {"warnings": warnings, "file": self._manifest.notes})

    def _read_manifest(self) -> FileManifest:
        path = self._source.manifest
        if path is None:
            return FileManifest(llm=self._source.table.stem, split=self._declared)
        try:
            manifest = FileManifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            fields = ", ".join(FileManifest.model_fields)
            raise ProfileError(
                f"{path} is not a manifest of profiles: {' '.join(str(error).split())[:300]}; it is a JSON object of {fields}"
            ) from error
        if manifest.format != FORMAT:
            raise ProfileError(f"{path} has format {manifest.format!r}, but only {FORMAT!r} is known; write it anew")
        if self._declared is not None and manifest.split not in (None, self._declared):
            raise ProfileError(
                f"the study says that {self._path} was written from split {self._declared!r}, but its manifest says {manifest.split!r}; "
                "remove one of the two"
            )
        return manifest.model_copy(update={"split": manifest.split or self._declared})


def read_texts(path: Path, id_name: str, text_name: str) -> dict[str, str | None]:
    """Returns raw id to text of a Parquet file; None where the text is null or nothing but white space.

    Args:
        path: the file.
        id_name: its column of ids, strings or whole numbers.
        text_name: its column of texts, strings of any kind.

    Raises:
        ProfileError: the file cannot be read, a column is absent or of the wrong type, or an id is null or appears twice.
    """
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ProfileError(
            f"{path} cannot be read as Parquet: {shown([error])}; write it anew with columns {id_name} and {text_name}"
        ) from error
    absent = [name for name in (id_name, text_name) if name not in table.column_names]
    if absent:
        raise ProfileError(
            f"{path} has no column {shown(absent)}; its columns are {shown(table.column_names)}; it needs `{id_name}` and `{text_name}`"
        )
    ids, texts = id_column(table.column(id_name)), _text_column(table.column(text_name))
    if ids is None or texts is None:
        raise ProfileError(
            f"{path} holds {table.schema.field(id_name).type} in `{id_name}` and {table.schema.field(text_name).type} in `{text_name}`; "
            "ids must be strings or whole numbers, and texts strings"
        )
    if ids.null_count:
        raise ProfileError(f"{path} has {ids.null_count:,} rows without a value in `{id_name}`; delete them or fill them in")
    counts = pc.value_counts(ids)
    twice = sorted(entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1)
    if twice:
        raise ProfileError(f"{path} has more than one row for {len(twice):,} values of `{id_name}` ({shown(twice, 5)}); keep one row each")
    trimmed = pc.utf8_trim_whitespace(texts)
    return {key: text if bare else None for key, text, bare in zip(ids.to_pylist(), texts.to_pylist(), trimmed.to_pylist(), strict=True)}


def _text_column(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Returns texts as large strings, whatever kind of strings they are (a pandas category is a dictionary); None: they are not strings."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not any(fits(kind) for fits in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        return None
    return pc.cast(pc.cast(column, kind), pa.large_string())


def write_folder(folder: Path, table: pa.Table, manifest: FileManifest) -> None:
    """Writes profiles as the folder that `FileEngine` reads; the manifest comes last.

    Args:
        folder: is made where it does not exist.
        table: at least `user_id` and `profile`, both strings.
        manifest: say with `split` what the texts were written from, or they never reach a verdict.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / PROFILES_FILE, compression="zstd")
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _locate(path: Path) -> _Source:
    if path.is_file():
        return _Source(path, None)
    if (path / PROFILES_FILE).is_file():
        manifest = path / MANIFEST_FILE
        return _Source(path / PROFILES_FILE, manifest if manifest.is_file() else None)
    what = f"a folder without {PROFILES_FILE!r}" if path.is_dir() else "not there"
    raise ProfileError(
        f"profiles path {str(path)!r} is {what}; give a Parquet file with columns user_id and profile, or a folder that holds it as "
        f"{PROFILES_FILE!r} (with {MANIFEST_FILE!r} to declare its split: {DECLARED_COLUMN!r}, a split's key or its train_digest)"
    )


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return file_digest(stream, "sha256").hexdigest()
