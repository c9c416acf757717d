"""The synchronous engine, for real, on a tiny Llama: one row for every user, whatever happens."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.base import Job
from llmkt_ray.profiles.engines.registry import engine_of
from llmkt_ray.profiles.engines.vllm_sync import Engine, VllmSyncBackend
from llmkt_ray.profiles.generate import generate, profiles_key
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.prompts import Prompt
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


def test_profiles_of_a_real_model(llama: Path, data: PreparedData, store: ArtifactStore) -> None:
    seen: list[tuple[int, int]] = []
    profiles = generate(_config(llama), data, store, study_seed=1, progress=lambda done, total: seen.append((done, total)))
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
        assert 0 < row["prompt_tokens"] <= 400
        assert row["prompt_version"] == "movies-1"
    assert seen[-1] == (12, 12)
    assert not store.files.list("profile_parts", recursive=True)
    assert engines_left() == set()
    again = generate(_config(llama), data, store, study_seed=1, progress=lambda done, total: pytest.fail("generated twice"))
    assert again.table.equals(profiles.table)


def test_prompt_tokens_are_what_the_engine_counts(llama: Path, data: PreparedData, store: ArtifactStore) -> None:
    config = _config(llama)
    engine = engine_of(config)
    counted = {prompt.user_id: prompt.tokens for prompt in engine.builder(data).build(data)}
    written = engine.write(data, Job(3, lambda done, total: None, Parts(store, "k")))
    assert {row["user_id"]: row["prompt_tokens"] for row in written.table.to_pylist()} == counted


def test_killed_actor_costs_nothing(llama: Path, data: PreparedData, store: ArtifactStore) -> None:
    """SIGKILL in mid-run: the block is asked again, every user has one row, no process is left."""
    killed: list[int] = []

    def kill_once(done: int, total: int) -> None:
        if not killed:
            killed.extend(engine_processes())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    profiles = generate(_config(llama), data, store, study_seed=1, progress=kill_once)
    assert killed
    assert profiles.table.column("user_id").to_pylist() == data.user_tokens.tolist()
    assert profiles.coverage == 1
    assert engines_left() == set()


def test_driver_that_stopped_goes_on_with_what_is_missing(llama: Path, data: PreparedData, store: ArtifactStore) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 7:
            raise Stopped

    with pytest.raises(Stopped):
        generate(_config(llama), data, store, study_seed=1, progress=stop)
    assert engines_left() == set()
    key = profiles_key(_config(llama), data.key, 1)
    before = Parts(store, key).finished()
    assert 7 <= len(before) < 12
    profiles = generate(_config(llama), data, store, study_seed=1)
    assert profiles.notes["resumed_rows"] == len(before)
    rows = {row["user_id"]: row for row in profiles.table.to_pylist()}
    assert len(rows) == 12
    for (user, _), row in before.items():
        assert rows[user]["profile"] == row.profile


class _Poisoned(Engine):
    """The real engine, and a prompt that kills its process as a bug in a kernel would."""

    def answer(self, conversations: Any) -> Any:
        if any("POISON" in messages[1]["content"] for messages in conversations):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(conversations)


def test_poison_prompt_is_isolated_and_marked(
    llama: Path, data: PreparedData, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llmkt_ray.profiles.engines.vllm_sync as module

    monkeypatch.setattr(module, "Engine", _Poisoned)
    prompts = [replace(p) for p in engine_of(_config(llama)).builder(data).build(data)][:6]
    poison = Prompt("u02", (prompts[2].messages[0], {"role": "user", "content": "POISON"}), 10, 1, ())
    prompts[2] = poison
    engine: Any = engine_of(_config(llama, attempts=1))
    rows = list(engine._complete(prompts, {}, "v", Job(1, lambda done, total: None, Parts(store, "k"))))
    engine._backend.close()
    by_user = {row.user_id: row for row in rows}
    assert len(rows) == len(by_user) == 6
    assert by_user["u02"].profile is None
    assert by_user["u02"].error is not None
    assert by_user["u02"].error.startswith("engine_died")
    assert all(row.profile for user, row in by_user.items() if user != "u02")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", "no tokenizer that can be read"),
        ("config.json", "holds no config.json"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_incomplete_model_folder(missing: str, message: str, llama: Path, tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    import shutil

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
    import shutil

    shutil.copytree(llama, tmp_path / llama.name)
    same = VllmSyncBackend(_config(tmp_path / llama.name), TaskResources()).identity()
    assert same == VllmSyncBackend(_config(llama), TaskResources()).identity()
    (tmp_path / llama.name / "config.json").write_text("{}")
    assert VllmSyncBackend(_config(tmp_path / llama.name), TaskResources()).identity() != same
