"""Structured output by the real engine: a model of random weights answers in the parts it is told, because it cannot do otherwise."""

import re
from pathlib import Path

import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.profiles.generate import generate
from llmkt_ray.study import ProfileConfig
from tests.llm.conftest import ENGINE

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.mark.parametrize("llm", ["vllm-sync", "vllm"])
def test_every_profile_has_the_parts(llm: str, llama: Path, data: PreparedData, store: ArtifactStore) -> None:
    config = ProfileConfig(
        llm=llm, model=str(llama), prompt_budget=400, max_tokens=48, engine=ENGINE, temperature=1.0, structured=("genres", "moods")
    )
    profiles = generate(config, data, store, study_seed=1)
    texts = profiles.table.column("profile").to_pylist()
    assert profiles.coverage == 1, profiles.table.column("error").to_pylist()
    assert all(re.fullmatch(r"genres: [^\n]+(\nmoods: [^\n]+)?|moods: [^\n]+", text) for text in texts), texts
