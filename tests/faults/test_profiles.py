"""Real kills while profiles are written: afterwards every user has one row, and no process of an engine is left.

Refusals by an endpoint are in tests/unit/profiles/test_openai.py, a killed actor, a poison prompt and broken model folders in tests/llm,
histories beyond the budget in tests/unit/profiles/test_prompts.py.
"""

import resource
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import StorageError
from llmkt_ray.profiles.engines.backend import Answer, Outcome
from llmkt_ray.profiles.engines.base import Job
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.engines.vllm_data import VllmDataBackend
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.prompts import EstimatedTokens, Prompt
from llmkt_ray.study import ProfileConfig, TaskResources
from tests.faults.profile_writer import USERS, Writing, engines, family, wait_until
from tests.films import film_split

pytestmark = pytest.mark.ray


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def data(tmp_path: Path, store: ArtifactStore) -> PreparedData:
    return film_split(tmp_path / "films", store)


@pytest.mark.timeout(1500)
def test_the_driver_is_killed(tmp_path: Path) -> None:
    """A new driver goes on with what is missing. (Its engine killed: tests/llm/test_vllm_sync.py.)"""
    writing = Writing(tmp_path, "vllm-sync")
    driver = writing.start()
    wait_until(lambda: writing.rows_on_disk() >= 4, driver, tmp_path / "log")
    below = engines(family(driver.pid))
    assert below
    driver.kill()
    driver.wait()
    assert not psutil.wait_procs(below, timeout=60)[1], "engines of a killed driver live on"
    before = writing.rows_on_disk()
    assert 4 <= before < USERS, "the driver was killed too late to tell anything"
    profiles = writing.write()
    assert profiles.notes["resumed_rows"] == before
    assert writing.problems() == []


@pytest.mark.timeout(1500)
def test_the_engine_core_below_ray_data_is_killed(tmp_path: Path) -> None:
    writing = Writing(tmp_path, "vllm")
    driver = writing.start()
    wait_until(lambda: writing.rows_on_disk() >= 4, driver, tmp_path / "log")
    below = engines(family(driver.pid))
    cores = engines(below, ("VLLM::EngineCore",))
    assert cores
    for core in cores:
        core.kill()
    assert driver.wait(500) == 0, (tmp_path / "log").read_text(errors="replace")[-3000:]
    assert not psutil.wait_procs(below, timeout=60)[1]
    assert writing.problems() == []


class _Stub:
    """Answers every prompt at once."""

    def identity(self) -> dict[str, Any]:
        return {"backend": "stub"}

    def run(self, blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        for number, block in enumerate(blocks):
            yield number, [Answer(f"This viewer is number {prompt.hash}. " * 40, "stop", 9, 9) for prompt in block]

    def close(self) -> None:
        pass


def test_a_full_disk_is_said_and_the_rows_before_it_stay(data: PreparedData, store: ArtifactStore) -> None:
    """The file size limit stands in for a full disk: the kernel refuses to write in the same place."""
    engine = LlmEngine(ProfileConfig(llm="openai", model="stub", block_size=4), _Stub(), EstimatedTokens)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    parts = Parts(store, "k")

    def fill(done: int, total: int) -> None:
        if done >= 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))

    try:
        with pytest.raises(StorageError, match=r"writing .* failed|no space left"):
            engine.write(data, Job(1, fill, parts))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(parts.finished()) == 8
    written = engine.write(data, Job(1, lambda done, total: None, parts))
    assert written.notes["resumed_rows"] == 8
    assert written.table.column("profile").null_count == 0
    assert sorted(written.table.column("user_id").to_pylist()) == sorted(data.user_tokens.tolist())


def test_ray_data_isolates_a_prompt_that_always_kills_its_pipeline(
    data: PreparedData, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline alone is replaced, by one that dies where the prompt is: what is told is the search for it."""
    deaths: list[int] = []

    def pipeline(self: VllmDataBackend, blocks: dict[int, list[Prompt]], seed: int) -> Generator[tuple[int, list[Answer]]]:
        for number, block in blocks.items():
            if any(prompt.user_id == "u13" for prompt in block):
                deaths.append(len(block))
                raise RuntimeError("EngineCore died")
            yield number, [Answer("a text", "stop", 1, 1) for _ in block]

    monkeypatch.setattr(VllmDataBackend, "_pipeline", pipeline)
    config = ProfileConfig(llm="vllm", model="/nowhere", block_size=8, attempts=2)
    engine = LlmEngine(config, VllmDataBackend(config, TaskResources()), EstimatedTokens)
    written = engine.write(data, Job(1, lambda done, total: None, Parts(store, "k")))
    rows = {row["user_id"]: row for row in written.table.to_pylist()}
    assert len(rows) == written.table.num_rows == 40
    assert [user for user, row in rows.items() if row["profile"] is None] == ["u13"]
    assert rows["u13"]["error"].startswith("engine_died: RuntimeError: EngineCore died")
    assert rows["u13"]["attempts"] == 2
    assert len(deaths) <= 8, "the search for it does not end"
