"""Digests of whole files. A large file is read once, and not again by later commands, as long as it does not change."""

import os
from collections.abc import Iterable
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path

from llmkt_ray.seeds import content_key

_WORTH_KEEPING_BYTES = 1 << 28
"""Smaller files are read anew by every command, which takes a fraction of a second."""


def digest_of(folder: Path, paths: Iterable[Path]) -> str:
    """Returns one SHA-256, in hex, of files below a folder: of their names in it and their contents; of a single file its own."""
    files = [(path.relative_to(folder).as_posix(), _digest(str(path.absolute()), *_stamp(path))) for path in paths]
    return files[0][1] if len(files) == 1 else sha256("".join(f"{name}\0{digest}\n" for name, digest in files).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int]:
    """Returns what changes when a file does. An archive can restore size and modification time, and nothing the time of the inode."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


@cache
def _digest(path: str, size: int, modified_ns: int, changed_ns: int) -> str:
    kept = _memory() / content_key([path, size, modified_ns, changed_ns])
    if size >= _WORTH_KEEPING_BYTES and (known := _read(kept)):
        return known
    with open(path, "rb") as stream:
        digest = file_digest(stream, "sha256").hexdigest()
    if size >= _WORTH_KEEPING_BYTES:
        _keep(kept, digest)
    return digest


def _memory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmkt_ray" / "digests"


def _read(kept: Path) -> str | None:
    try:
        text = kept.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if len(text) == sha256().digest_size * 2 else None


def _keep(kept: Path, digest: str) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        half = kept.with_name(f"{kept.name}.{os.getpid()}")
        half.write_text(digest, encoding="ascii")
        half.replace(kept)
    except OSError:  # a home that cannot be written to: the file is read again
        pass
