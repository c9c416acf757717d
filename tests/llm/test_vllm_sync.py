"""The synchronous engine, for real, on a tiny Llama: one row for every user, whatever happens.

A start takes longer than all that is asked of it, so the tests ask one backend, and the last one closes it.
"""

import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles import generate as generate_module
from llmkt_ray.profiles.engines import vllm_sync
from llmkt_ray.profiles.engines.backend import Outcome
from llmkt_ray.profiles.engines.base import Job
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.engines.vllm_sync import Engine, VllmSyncBackend
from llmkt_ray.profiles.generate import generate, profiles_key
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.prompts import Prompt
from llmkt_ray.profiles.tokenizer import ModelTokens
from llmkt_ray.study import ProfileConfig, TaskResources
from tests.llm.conftest import ENGINE, engine_processes, engines_left

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def _config(llama: Path, **changes: Any) -> ProfileConfig:
    settings = {
        "llm": "vllm-sync",
        "model": str(llama),
        "prompt_budget": 400,
        "max_tokens": 24,
        "block_size": 5,
        "engine": ENGINE,
        "temperature": 1.0,
    }
    return ProfileConfig(**(settings | changes))


class EngineWithPoison(Engine):
    """The real engine, and a prompt that kills its process as a bug in a kernel would."""

    def answer(self, conversations: Any) -> Any:
        if any("POISON" in messages[1]["content"] for messages in conversations):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(conversations)


class _Shared:
    """The real backend, which stays open when an engine is done with it, and counts that."""

    def __init__(self, config: ProfileConfig) -> None:
        self.real = VllmSyncBackend(config, TaskResources())
        self.closed = 0
        self.asked: list[Prompt] = []

    def identity(self) -> dict[str, Any]:
        return self.real.identity()

    def run(self, blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        self.asked = [prompt for block in blocks for prompt in block]
        yield from self.real.run(blocks, seed)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def backend(llama: Path) -> Iterator[_Shared]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_sync, "Engine", EngineWithPoison)
        shared = _Shared(_config(llama))
        yield shared
        shared.real.close()


@pytest.fixture
def shared(backend: _Shared, monkeypatch: pytest.MonkeyPatch) -> _Shared:
    """Has `generate` ask the backend that is open."""

    def engine(config: ProfileConfig, resources: TaskResources | None = None) -> LlmEngine:
        return LlmEngine(config, backend, lambda: ModelTokens(str(config.model)))

    monkeypatch.setattr(generate_module, "engine_of", engine)
    backend.closed = 0
    return backend


def test_profiles_of_a_real_model(llama: Path, data: PreparedData, store: ArtifactStore, shared: _Shared) -> None:
    seen: list[tuple[int, int]] = []
    profiles = generate(_config(llama), data, store, study_seed=1, progress=lambda done, total: seen.append((done, total)))
    counted = {prompt.user_id: prompt.tokens for prompt in shared.asked}
    rows = profiles.table.to_pylist()
    assert [row["user_id"] for row in rows] == data.user_tokens.tolist()
    assert profiles.is_llm
    assert profiles.certificate.status == "verified"
    assert 0 < profiles.certificate.pairs <= sum(row["history_size"] for row in rows) == len(data.train)
    for row in rows:
        assert row["profile"]
        assert row["error"] is None
        assert row["attempts"] == 1
        assert 0 < row["output_tokens"] <= 24
        assert row["finish_reason"] == ("length" if row["output_tokens"] == 24 else "stop")
        # What the prompt was cut by is what the engine counts.
        assert 0 < row["prompt_tokens"] == counted[row["user_id"]] <= 400
        assert row["prompt_version"] == "movies-2"
    assert seen[-1] == (12, 12)
    assert not store.files.list("profile_parts", recursive=True)
    assert shared.closed == 1
    again = generate(_config(llama), data, store, study_seed=1, progress=lambda done, total: pytest.fail("generated twice"))
    assert again.table.equals(profiles.table)


MERGING = """{% block system %}You describe taste.{% endblock %}
{% block user %}{% for entry in history %}- {{ entry.line }}
{% endfor %}{% endblock %}
{% block merge %}Notes:{% for part in parts %} {{ part }};{% endfor %}{% endblock %}"""


def test_histories_in_parts_are_merged_by_the_model(
    llama: Path, tmp_path: Path, data: PreparedData, store: ArtifactStore, shared: _Shared
) -> None:
    template = tmp_path / "short.j2"
    template.write_text(MERGING)
    config = _config(llama, long_history="chunks", prompt=str(template), prompt_budget=250)
    profiles = generate(config, data, store, study_seed=1)
    merged = {prompt.user_id: prompt for prompt in shared.asked}
    assert merged, "no history needed parts"
    assert profiles.notes["histories_in_parts"] == len(merged)
    assert all(prompt.messages[1]["content"].startswith("Notes:") and prompt.tokens <= 250 for prompt in merged.values())
    rows = {row["user_id"]: row for row in profiles.table.to_pylist()}
    assert list(rows) == data.user_tokens.tolist()
    assert profiles.coverage == 1
    assert profiles.certificate.status == "verified"
    # The sums of all that was asked about the user, as the engine counted.
    assert all(rows[user]["prompt_tokens"] > prompt.tokens and rows[user]["output_tokens"] > 24 for user, prompt in merged.items())
    assert profiles.notes["asked"] > data.n_users + len(merged)


def test_an_actor_is_killed_and_then_the_driver_stops(llama: Path, data: PreparedData, store: ArtifactStore, shared: _Shared) -> None:
    """SIGKILL in mid-run: the block is asked again. What is missing when the driver stops is written by the next one."""
    killed: list[int] = []

    class Stopped(Exception):
        pass

    def strike(done: int, total: int) -> None:
        if not killed:
            killed.extend(engine_processes())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        if done >= 7:
            raise Stopped

    with pytest.raises(Stopped):
        generate(_config(llama), data, store, study_seed=1, progress=strike)
    assert killed
    assert shared.closed == 1
    before = Parts(store, profiles_key(_config(llama), data.key, 1)).finished()
    assert 7 <= len(before) < 12
    assert all(row.profile for row in before.values())
    profiles = generate(_config(llama), data, store, study_seed=1)
    assert {(prompt.user_id, prompt.hash) for prompt in shared.asked}.isdisjoint(before)
    assert profiles.notes["resumed_rows"] == len(before)
    rows = {row["user_id"]: row for row in profiles.table.to_pylist()}
    assert list(rows) == profiles.table.column("user_id").to_pylist() == data.user_tokens.tolist()
    assert profiles.coverage == 1
    for (user, _), row in before.items():
        assert rows[user]["profile"] == row.profile


def test_poison_prompt_is_isolated_and_marked(llama: Path, data: PreparedData, store: ArtifactStore, shared: _Shared) -> None:
    config = _config(llama, attempts=1)
    engine: Any = LlmEngine(config, shared, lambda: ModelTokens(str(config.model)))
    prompts = list(engine.builder(data).build(data))[:6]
    prompts[2] = Prompt("u02", (prompts[2].messages[0], {"role": "user", "content": "POISON"}), 10, 1, ())
    rows = list(engine._complete(prompts, {}, "v", Job(1, lambda done, total: None, Parts(store, "k"))))
    by_user = {row.user_id: row for row in rows}
    assert len(rows) == len(by_user) == 6
    assert by_user["u02"].profile is None
    assert by_user["u02"].error is not None
    assert by_user["u02"].error.startswith("engine_died")
    assert all(row.profile for user, row in by_user.items() if user != "u02")


def test_a_closed_backend_leaves_no_process(backend: _Shared, data: PreparedData, llama: Path) -> None:
    prompts = list(LlmEngine(_config(llama), backend, lambda: ModelTokens(str(llama))).builder(data).build(data))
    next(running := backend.run([prompts[:6], prompts[6:]], 1))
    assert engine_processes()
    running.close()  # in the middle of a block, as an interrupted driver does
    backend.real.close()
    assert engines_left() == set()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", "no tokenizer that can be read"),
        ("config.json", "holds no config.json"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_incomplete_model_folder(missing: str, message: str, llama: Path, tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(llama, broken)
    (broken / missing).unlink()
    if missing == "tokenizer.json":
        (broken / "tokenizer_config.json").unlink()
    with pytest.raises(ProfileError, match=message):
        generate(_config(broken), data, store, study_seed=1)


def test_engine_that_cannot_start_says_why(llama: Path, data: PreparedData, store: ArtifactStore) -> None:
    with pytest.raises(ProfileError, match=r"vLLM does not start with model.*max_model_len"):
        generate(_config(llama, engine=ENGINE | {"max_model_len": 100_000}), data, store, study_seed=1)
    assert engines_left() == set()


def test_backend_identity_is_the_models_content(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / llama.name)
    same = VllmSyncBackend(_config(tmp_path / llama.name), TaskResources()).identity()
    assert same == VllmSyncBackend(_config(llama), TaskResources()).identity()
    (tmp_path / llama.name / "config.json").write_text("{}")
    assert VllmSyncBackend(_config(tmp_path / llama.name), TaskResources()).identity() != same
