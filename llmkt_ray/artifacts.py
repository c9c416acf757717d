"""Content-addressed artifacts: the same inputs give the same key, and nothing is computed twice.

An artifact is a folder `<root>/<kind>/<key>/` of arrays (safetensors), tables (Parquet) and documents (JSON)
with a `manifest.json` that is written last: the manifest is the commit. A folder without a manifest, or one
whose files do not match the sizes and digests in it, does not count and is computed again. This holds on a
local disk and on any pyarrow file system (`s3://bucket/prefix`, `gs://...`).
"""

import errno
import io
import json
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import safetensors.numpy

from llmkt_ray.errors import ArtifactError, StorageError

MANIFEST = "manifest.json"
_WRITE_ATTEMPTS = 5
_SECRET_IN_URI = re.compile(r"://[^/?@]*:[^/?@]*@|[?&](secret_key|session_token|password)=")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SAFETENSORS_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what made it.

    Attributes:
        kind: the stage that made it, for example "split" or "targets".
        key: its content key: a digest of `inputs`.
        inputs: everything that determines the content, JSON values only.
        files: file name to {"bytes": size, "sha256": hex digest}, and "file": where it lies, if not under its own name.
        versions: package name to version, of what computed it.
        wall_s: seconds it took to compute.
        created: UTC time in ISO 8601.
        notes: facts about the content that are not inputs (counts, certificates, costs), JSON values only.
    """

    kind: str
    key: str
    inputs: dict[str, Any]
    files: dict[str, dict[str, Any]]
    versions: dict[str, str]
    wall_s: float
    created: str
    notes: dict[str, Any] = field(default_factory=dict)


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Returns name to version of those of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def below(storage: str, *parts: str) -> str:
    """Returns the folder or URI `parts` below `storage`; the options of a URI (`?endpoint_override=...`) stay at its end."""
    if "://" not in storage:
        return str(Path(storage).absolute().joinpath(*parts))
    location, mark, options = storage.partition("?")
    return "/".join((location.rstrip("/"), *parts)) + mark + options


def storage_problem(error: OSError, where: str) -> StorageError:
    """Returns the error that a user can act on for an `OSError` met while writing to `where`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"no space left while writing {where}; free some space or choose another `storage`, then run again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageError(f"{where} cannot be written ({os.strerror(error.errno)}); choose a `storage` folder that you may write to")
    return StorageError(f"writing {where} failed: {error}; check the storage, then run again")


@contextmanager
def _told(doing: str, where: str) -> Iterator[None]:
    """Turns an `OSError` of a file system (denied, not answering, damaged) into one that a user can act on."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{doing} {where} failed: {error}; check the storage, then run again") from error


class FileStore:
    """Whole files under a root, local or remote, each written atomically.

    Args:
        root: a folder, or a URI that pyarrow knows (`s3://...`, `gs://...`, `file://...`).

    Raises:
        StorageError: the URI is not understood, or carries a secret.
    """

    def __init__(self, root: str | Path) -> None:
        # A relative folder is made absolute here: a worker that gets this root may have another working directory.
        self.root = str(root) if "://" in str(root) else str(Path(root).absolute())
        if _SECRET_IN_URI.search(self.root):
            raise StorageError(
                "the storage URI carries a password or secret key, which would end up in results and messages; "
                "give it to the environment instead (for example AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            )
        try:
            if "://" in self.root:
                self._fs, self._base = pafs.FileSystem.from_uri(self.root)
            else:
                self._fs, self._base = pafs.LocalFileSystem(), self.root
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError(f"storage {self.root!r} is not a folder or a known URI: {error}") from error
        self.is_local = isinstance(self._fs, pafs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Returns the path of `name` as the file system knows it."""
        return f"{self._base}/{name}"

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes `data` as file `name`; a reader sees the whole file or none.

        Raises:
            StorageError: the disk is full, read-only, or fails otherwise.
        """
        path = self.path(name)
        try:
            if not self.is_local:
                with self._fs.open_output_stream(path) as stream:
                    stream.write(data)
                return
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
            try:
                with open(partial, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise storage_problem(error, path) from error

    def read_bytes(self, name: str) -> bytes | None:
        """Returns the content of file `name`, or None where there is none.

        Raises:
            StorageError: it is there but cannot be read, or the storage does not answer.
        """
        with _told("reading", self.path(name)):
            try:
                with self._fs.open_input_stream(self.path(name)) as stream:
                    return bytes(stream.read())
            except (FileNotFoundError, NotADirectoryError):
                return None

    def exists(self, name: str) -> bool:
        """Says whether a file or folder `name` is there."""
        with _told("looking for", self.path(name)):
            return bool(self._fs.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def modified_ns(self, name: str) -> int | None:
        """Returns when file `name` was written last, in nanoseconds since 1970, or None where there is none."""
        with _told("looking for", self.path(name)):
            modified: int | None = self._fs.get_file_info(self.path(name)).mtime_ns
            return modified

    def list(self, folder: str, recursive: bool = False) -> list[str]:
        """Returns the names of the files below `folder`, sorted, relative to the root; partial files left out."""
        selector = pafs.FileSelector(self.path(folder), recursive=recursive, allow_not_found=True)
        with _told("listing", self.path(folder)):
            infos = self._fs.get_file_info(selector)
        names = (info.path[len(self._base) :].lstrip("/") for info in infos if info.type == pafs.FileType.File)
        return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith("."))

    def folders(self) -> tuple[str, ...]:
        """Returns the names of the folders right below the root, sorted."""
        with _told("listing", self.path("")):
            infos = self._fs.get_file_info(pafs.FileSelector(self.path(""), allow_not_found=True))
        return tuple(sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory))

    def delete(self, name: str) -> None:
        """Deletes file or folder `name`; absent is fine."""
        with _told("deleting", self.path(name)):
            info = self._fs.get_file_info(self.path(name))
            if info.type == pafs.FileType.Directory:
                self._fs.delete_dir(info.path)
            elif info.type == pafs.FileType.File:
                self._fs.delete_file(info.path)


class ArtifactStore:
    """Artifacts of all kinds under one root.

    Args:
        root: a folder or a URI, see `FileStore`.
        cache: a local folder for memory-mapped copies when `root` is remote.
    """

    def __init__(self, root: str | Path, cache: str | Path | None = None) -> None:
        self.files = FileStore(root)
        self.root = self.files.root
        self._cache = Path(cache) if cache else None
        self._verified: set[tuple[str, str]] = set()

    def __reduce__(self) -> tuple[type["ArtifactStore"], tuple[str, Path | None]]:
        return (ArtifactStore, (self.root, self._cache))

    def save(
        self,
        kind: str,
        key: str,
        *,
        inputs: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
        tables: Mapping[str, pa.Table] | None = None,
        documents: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        notes: Mapping[str, Any] | None = None,
        wall_s: float = 0.0,
        rewrite: bool = False,
    ) -> Manifest:
        """Writes one artifact and returns its manifest; all `arrays` go into one file `arrays.safetensors`.

        `rewrite`: the artifact is there and stays whole until the new one is: files get new names, and the old ones go last.

        Raises:
            StorageError: the disk is full or read-only; nothing that counts as an artifact is left behind. Or others
                kept writing different content under this key.
            ArtifactError: a name is not a plain file name.
        """
        payload: dict[str, bytes] = {}
        if arrays:
            contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
            payload["arrays.safetensors"] = safetensors.numpy.save(contiguous)
        for name, table in (tables or {}).items():
            sink = io.BytesIO()
            pq.write_table(table, sink, compression="zstd")
            payload[f"{_plain(name)}.parquet"] = sink.getvalue()
        for name, document in (documents or {}).items():
            payload[f"{_plain(name)}.json"] = json.dumps(document, indent=1, sort_keys=True).encode()
        manifest = Manifest(
            kind=kind,
            key=key,
            inputs=dict(inputs),
            files={n: _file(n, d, rewrite) for n, d in payload.items()},
            versions=dict(versions or {}),
            wall_s=round(wall_s, 3),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            notes=dict(notes or {}),
        )
        folder = f"{_plain(kind)}/{_plain(key)}"
        # Two processes may compute one key at the same time. Equal content is harmless; where it differs (an LLM's
        # texts) their files may end up mixed, so what is there is read back, and written again if it is not whole.
        for attempt in range(_WRITE_ATTEMPTS):
            for name, data in payload.items():
                self.files.write_bytes(_path(manifest, name), data)
            self.files.write_bytes(f"{folder}/{MANIFEST}", _signed(manifest))
            found = self.find(kind, key)
            if found is not None:
                if rewrite:
                    self.tidy(found)
                return found
            time.sleep(0.05 * 2**attempt * os.urandom(1)[0] / 255)  # drawn, or two writers would keep in step
        raise StorageError(
            f"artifact {folder} in {self.root} was damaged {_WRITE_ATTEMPTS} times while it was written; do two studies run on it?"
        )

    def tidy(self, manifest: Manifest) -> None:
        """Deletes what lies in an artifact's folder and is not of it: what a rewriting that was cut short has left."""
        folder = f"{manifest.kind}/{manifest.key}"
        own = {f"{folder}/{MANIFEST}", *(_path(manifest, name) for name in manifest.files)}
        for name in self.files.list(folder):
            if name not in own:
                self.files.delete(name)

    def find(self, kind: str, key: str) -> Manifest | None:
        """Returns the manifest of a whole and unharmed artifact, or None: then it is to be computed (again)."""
        try:
            manifest = self.manifest(kind, key)
            for name in manifest.files:
                self._checked_bytes(manifest, name)
        except ArtifactError:
            return None
        return manifest

    def manifest(self, kind: str, key: str) -> Manifest:
        """Returns the manifest of an artifact.

        Raises:
            ArtifactError: there is none, or it is damaged.
        """
        folder = f"{_plain(kind)}/{_plain(key)}"
        data = self.files.read_bytes(f"{folder}/{MANIFEST}")
        if data is None:
            raise ArtifactError(f"artifact {folder} is not in {self.root}; run the study again to compute it")
        manifest = _unsigned(data)
        if manifest is None or (manifest.kind, manifest.key) != (kind, key):
            raise ArtifactError(f"the manifest of {folder} in {self.root} is damaged; run the study again to compute it anew")
        return manifest

    def keys(self, kind: str) -> Iterator[str]:
        """Yields the keys of a kind that have a manifest, whole or not."""
        for name in self.files.list(kind, recursive=True):
            key, _, file = name.removeprefix(f"{kind}/").partition("/")
            if file == MANIFEST:
                yield key

    def manifests(self, kind: str) -> Iterator[Manifest]:
        """Yields the manifests of a kind that are not damaged, by key; their files are not looked at."""
        for key in self.keys(kind):
            try:
                yield self.manifest(kind, key)
            except ArtifactError:
                continue

    def arrays(self, kind: str, key: str) -> dict[str, np.ndarray]:
        """Returns an artifact's arrays, read-only and memory-mapped.

        Raises:
            ArtifactError: the artifact is missing or damaged, or the storage is remote and there is no cache.
        """
        manifest = self.manifest(kind, key)
        return _map_safetensors(self._local_file(manifest, "arrays.safetensors"))

    def table(self, kind: str, key: str, name: str) -> pa.Table:
        """Returns table `name` of an artifact.

        Raises:
            ArtifactError: the artifact is missing or damaged.
        """
        return pq.read_table(pa.BufferReader(self._checked_bytes(self.manifest(kind, key), f"{name}.parquet")))

    def document(self, kind: str, key: str, name: str) -> Any:
        """Returns document `name` of an artifact.

        Raises:
            ArtifactError: the artifact is missing or damaged.
        """
        return json.loads(self._checked_bytes(self.manifest(kind, key), f"{name}.json"))

    def forget_copy(self, digest: str) -> None:
        """Deletes this machine's cached copy of a file with that digest; absent is fine."""
        if self._cache is not None:
            FileStore(self._cache).delete(f"{_plain(digest)}.safetensors")

    def _checked_bytes(self, manifest: Manifest, name: str) -> bytes:
        if name not in manifest.files:
            raise ArtifactError(f"artifact {manifest.kind}/{manifest.key} has no file {name!r}; it has {sorted(manifest.files)}")
        file = _path(manifest, name)
        data = self.files.read_bytes(file)
        if data is None or sha256(data).hexdigest() != manifest.files[name]["sha256"]:
            raise ArtifactError(f"{file} in {self.root} is damaged or half written; run the study again to compute it anew")
        return data

    def _local_file(self, manifest: Manifest, name: str) -> Path:
        """Returns a local path of a file whose digest was checked once in this process."""
        file = _path(manifest, name)
        digest = str(manifest.files.get(name, {}).get("sha256"))
        if self.files.is_local:
            if (file, digest) not in self._verified:
                self._checked_bytes(manifest, name)
                self._verified.add((file, digest))
            return Path(self.files.path(file))
        if self._cache is None:
            raise ArtifactError(f"{self.root} is remote: a local cache folder is needed to map {file}")
        cached, local = FileStore(self._cache), f"{digest}.safetensors"
        if (file, digest) not in self._verified:
            copy = cached.read_bytes(local)
            if copy is None or sha256(copy).hexdigest() != digest:
                cached.write_bytes(local, self._checked_bytes(manifest, name))
            self._verified.add((file, digest))
        return Path(cached.path(local))


def _file(name: str, data: bytes, rewrite: bool) -> dict[str, Any]:
    """Returns what a manifest says of a file."""
    facts: dict[str, Any] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    return {**facts, "file": f"{facts['sha256'][:16]}-{name}"} if rewrite else facts


def _path(manifest: Manifest, name: str) -> str:
    """Returns where a file of an artifact lies: under its own name, or under a new one since the artifact was rewritten."""
    return f"{manifest.kind}/{manifest.key}/{_plain(str(manifest.files.get(name, {}).get('file', name)))}"


def _signed(manifest: Manifest) -> bytes:
    """Returns a manifest as JSON with its own digest in it, so that damage to the manifest is seen too."""
    content = json.loads(json.dumps(asdict(manifest)))  # as a reader will see it: text keys, lists for tuples
    return json.dumps({**content, "manifest_sha256": _digest(content)}, indent=1, sort_keys=True).encode()


def _unsigned(data: bytes) -> Manifest | None:
    """Returns the manifest that `_signed` wrote, or None if a bit of it has changed."""
    try:
        content = json.loads(data)
        if content.pop("manifest_sha256") != _digest(content):
            return None
        return Manifest(**content)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _digest(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(name: str) -> str:
    """Returns `name` if it is a plain file name: text from outside never becomes a path."""
    if not _NAME.fullmatch(name):
        raise ArtifactError(f"{name!r} is not a plain name of letters, digits, '.', '_' and '-'")
    return name


def _map_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Maps a safetensors file: an 8-byte little-endian header length, a JSON header, then the raw tensors."""
    with open(path, "rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_bytes))
    header.pop("__metadata__", None)
    mapped = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype, shape = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if begin == end:
            mapped[name] = np.empty(shape, dtype)
            mapped[name].flags.writeable = False
        else:
            mapped[name] = np.memmap(path, dtype, mode="r", offset=8 + header_bytes + begin, shape=shape)
    return mapped
