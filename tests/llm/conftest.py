import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.sweep.cluster import cluster as ray_cluster
from tests.films import film_split
from tests.llm.tiny_llama import build_tiny_llama

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "max_model_len": 1024, "max_num_seqs": 16}
"""Settings that start quickly and fit anywhere."""


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def data(tmp_path: Path, store: ArtifactStore) -> PreparedData:
    return film_split(tmp_path / "films", store, n_users=12)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    titles = [f"Film Number {n} ({1950 + n}); Drama, Comedy, Horror; rated {n % 5 + 1}" for n in range(60)]
    prompt = "You describe the taste of one viewer from the films they rated, for a film recommender. Rated films, most telling first:"
    return build_tiny_llama(tmp_path_factory.mktemp("llama"), [*titles, prompt] * 20)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    # More logical CPUs than there are: every stage of ray.data.llm is an actor that asks for one.
    with ray_cluster(num_cpus=8):
        yield


def engine_processes() -> set[int]:
    """Returns the processes below this one that hold an engine: Ray's actors, and vLLM's own."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:  # It ended while we looked, or is only waiting to be reaped.
            continue
        if any(name in command for name in ("ray::Engine", "ray::_MapWorker", "ray::MapWorker", "VLLM::")):
            found.add(process.pid)
    return found


def engines_left(patience_s: float = 120) -> set[int]:
    """Returns the engine processes that are still there after they had time to end."""
    until = time.monotonic() + patience_s
    while (left := engine_processes()) and time.monotonic() < until:
        time.sleep(0.2)
    return left
