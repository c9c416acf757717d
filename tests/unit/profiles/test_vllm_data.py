"""What of a study reaches `ray.data.llm` and Ray's actors, and what becomes of a row; the engines themselves run in tests/llm."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines import llm, vllm_sync
from llmkt_ray.profiles.engines.vllm_data import VllmDataBackend, answer_of
from llmkt_ray.profiles.generate import profiles_key
from llmkt_ray.study import ProfileConfig, TaskResources
from tests.films import film_split


@pytest.mark.parametrize(("prompt", "generated", "reason"), [(300, 24, "length"), (300, 23, "stop"), (390, 10, "length"), (390, 9, "stop")])
def test_a_text_ends_at_the_limit_of_answers_or_of_the_engine(prompt: int, generated: int, reason: str) -> None:
    row = {"generated_text": "x", "num_input_tokens": prompt, "num_generated_tokens": generated, "time_taken_llm": 0.5}
    assert answer_of(row, max_tokens=24, longest=400).finish_reason == reason


def test_an_error_is_an_answer_without_a_text() -> None:
    answer = answer_of({"__inference_error__": "too long"}, max_tokens=24, longest=400)
    assert (answer.text, answer.error) == (None, "inference: too long")


class _Stage:
    def __init__(self) -> None:
        self.map_batches_kwargs: dict[str, Any] = {}


class _Built:
    """What `build_processor` was given, and the stage that its bounds of restarts are set on."""

    def __init__(self, settings: dict[str, Any], preprocess: Any, postprocess: Any) -> None:
        self.settings, self.preprocess, self.stage = settings, preprocess, _Stage()

    def get_stage_by_name(self, name: str) -> _Stage:
        assert name == "vLLMEngineStage"
        return self.stage


def _built(monkeypatch: pytest.MonkeyPatch, config: ProfileConfig, resources: TaskResources) -> _Built:
    """The pipeline for a study, from a stand-in for `ray.data.llm`: that would load vLLM."""
    stand_in = ModuleType("ray.data.llm")
    stand_in.vLLMEngineProcessorConfig = dict  # type: ignore[attr-defined]
    stand_in.build_processor = _Built  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray.data.llm", stand_in)
    built = VllmDataBackend(config, resources)._processor(seed=7)
    assert isinstance(built, _Built)
    return built


def _config(**changes: Any) -> ProfileConfig:
    return ProfileConfig(**({"llm": "vllm", "model": "some/model", "prompt_budget": 700, "max_tokens": 100} | changes))


def test_pool_parallelism_and_prefix_caching_reach_ray_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    config = _config(workers=(1, 4), block_size=16, revision="abc", engine={"tensor_parallel_size": 2, "dtype": "bfloat16"})
    built = _built(monkeypatch, config, TaskResources(cpus=1, gpus=1))
    given = built.settings
    assert (given["model_source"], given["concurrency"], given["batch_size"]) == ("some/model", (1, 4), 16)
    assert given["engine_kwargs"] == {
        "enable_prefix_caching": True, "tensor_parallel_size": 2, "dtype": "bfloat16", "max_model_len": 800, "seed": 7, "revision": "abc",
    }  # fmt: skip
    assert given["should_continue_on_error"] is True
    assert given["placement_group_config"] is None  # Ray's own: a whole GPU a rank
    assert built.stage.map_batches_kwargs == {"max_restarts": 1, "max_task_retries": 1}, "a row that kills its engine restarts it for ever"
    assert "sk-secret" not in str(given)
    assert built.preprocess({"messages": []})["sampling_params"] == {"temperature": 0.0, "top_p": 1.0, "max_tokens": 100}


def test_a_part_of_a_gpu_and_no_gpu_are_one_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    part = _built(monkeypatch, _config(engine={"gpu_memory_utilization": 0.45}), TaskResources(cpus=2, gpus=0.5)).settings
    assert part["placement_group_config"] == {"bundle_per_worker": {"CPU": 2, "GPU": 0.5}}
    assert "VLLM_CPU_OMP_THREADS_BIND" not in part["runtime_env"]["env_vars"]
    assert _built(monkeypatch, _config(), TaskResources()).settings["concurrency"] == 1
    none = _built(monkeypatch, _config(), TaskResources(cpus=3, gpus=0)).settings
    assert none["placement_group_config"] == {"bundle_per_worker": {"CPU": 3}}
    assert none["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "3"
    assert none["engine_kwargs"]["kv_cache_memory_bytes"] == 1 << 30


@pytest.mark.parametrize("llm_name", ["vllm", "vllm-sync"])
@pytest.mark.parametrize("length", [799, 700, "8k", -1, True])
def test_a_context_shorter_than_prompt_and_answer_is_told_before_anything_starts(llm_name: str, length: object) -> None:
    short = _config(llm=llm_name, engine={"max_model_len": length})
    with pytest.raises(
        ProfileError, match=r"at least 800: prompt_budget 700 and max_tokens 100; leave it out \(it is then 800\), or lower"
    ):
        profiles_key(short, "check", 1)
    assert profiles_key(_config(llm=llm_name, engine={"max_model_len": 800}), "check", 1)


class _NoRay:
    """Notes what an actor asks for, and starts none."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def remote(self, *given: Any, **options: Any) -> Any:
        self.asked.update(options)
        return lambda engine: self


def test_an_actor_of_vllm_sync_asks_for_all_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_sync, "ray", no_ray := _NoRay())
    config = _config(llm="vllm-sync", engine={"tensor_parallel_size": 2})
    vllm_sync.VllmSyncBackend(config, TaskResources(cpus=3, gpus=1))._start(1)
    assert (no_ray.asked["num_cpus"], no_ray.asked["num_gpus"]) == (6, 2)


def test_the_key_is_of_model_and_revision_prompt_sampling_generation_seed_and_history(
    tmp_path: Path, data: PreparedData, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.j2"
    own.write_text("{% block system %}s{% endblock %}{% block user %}u{% endblock %}")
    settings: list[dict[str, Any]] = [{}, {"model": "other/model"}, {"revision": "abc"}, {"prompt": str(own)}, {"generation": 1}]
    settings += [{"engine": {"dtype": "float16"}}, {"top_p": 0.9}, {"temperature": 0.7}, {"max_tokens": 99}, {"full_history": True}]
    keys = [profiles_key(_config(**changes), data.key, 1) for changes in settings]
    keys += [profiles_key(_config(), data.key, 2), profiles_key(_config(), film_split(tmp_path / "films", store, seed=2).key, 1)]
    own.write_text("{% block system %}S{% endblock %}{% block user %}u{% endblock %}")
    keys.append(profiles_key(_config(prompt=str(own)), data.key, 1))
    same: list[dict[str, Any]] = [{"llm": "vllm-sync"}, {"name": "label"}, {"workers": (1, 4)}, {"block_size": 3}, {"attempts": 5}]
    same += [{"engine": {"gpu_memory_utilization": 0.5}}, {"engine": {"kv_cache_memory_bytes": 1 << 28}}]
    assert {profiles_key(_config(**changes), data.key, 1) for changes in same} == {keys[0]}
    monkeypatch.setattr(llm, "PROMPT_VERSION", "another")
    keys.append(profiles_key(_config(), data.key, 1))
    assert len(set(keys)) == len(keys)
