"""The production path, `ray.data.llm`, for real on a CPU: the code that runs on GPUs, unchanged."""

from pathlib import Path

import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.profiles.engines.registry import engine_of
from llmkt_ray.profiles.engines.vllm_data import VllmDataBackend
from llmkt_ray.profiles.generate import generate, profiles_key
from llmkt_ray.profiles.prompts import Prompt
from llmkt_ray.study import ProfileConfig, TaskResources
from tests.llm.conftest import ENGINE, engines_left

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def _config(llama: Path, llm: str = "vllm") -> ProfileConfig:
    # Attempts: random weights write an empty text now and then.
    return ProfileConfig(
        llm=llm, model=str(llama), prompt_budget=400, max_tokens=24, block_size=4, engine=ENGINE, temperature=1.0, attempts=3
    )


def test_one_row_for_every_user(llama: Path, data: PreparedData, store: ArtifactStore) -> None:
    profiles = generate(_config(llama), data, store, study_seed=1)
    engine = engine_of(_config(llama))
    counted = {prompt.user_id: prompt.tokens for prompt in engine.builder(data).build(data)}
    rows = profiles.table.to_pylist()
    assert [row["user_id"] for row in rows] == data.user_tokens.tolist()
    assert profiles.coverage == 1
    for row in rows:
        assert row["prompt_tokens"] == counted[row["user_id"]]
        assert 0 < row["output_tokens"] <= 24
        assert row["finish_reason"] == ("length" if row["output_tokens"] == 24 else "stop")
    assert engines_left() == set()


def test_a_row_that_fails_is_an_answer_with_an_error(llama: Path, data: PreparedData) -> None:
    """A prompt longer than the engine's context: its row has the error, its neighbours their texts."""
    prompts = list(engine_of(_config(llama)).builder(data).build(data))[:4]
    long = Prompt("u01", (prompts[1].messages[0], {"role": "user", "content": "film " * 3000}), 9000, 1, ())
    backend = VllmDataBackend(_config(llama), TaskResources())
    [(number, answers)] = list(backend.run([[prompts[0], long, prompts[2], prompts[3]]], seed=1))
    assert number == 0
    assert [answer.error is None for answer in answers] == [True, False, True, True]
    assert answers[1].error.startswith("inference: ")


def test_both_ways_to_run_vllm_are_one_choice(llama: Path, data: PreparedData) -> None:
    assert profiles_key(_config(llama), data.key, 1) == profiles_key(_config(llama, "vllm-sync"), data.key, 1)
