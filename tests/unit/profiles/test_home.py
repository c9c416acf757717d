"""A path that begins with `~` is read wherever a study may give one, and is the same thing under the same key as written out."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.profiles.engines import vllm_sync
from llmkt_ray.profiles.generate import generate, profiles_key
from llmkt_ray.profiles.items import item_texts_key, write_item_texts
from llmkt_ray.profiles.prompts import PromptTemplate
from llmkt_ray.profiles.tokenizer import ModelTokens
from llmkt_ray.study import ProfileConfig, TaskResources
from tests.llm.tiny_llama import build_tiny_llama
from tests.unit.profiles.test_vllm_data import _built, _NoRay


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_texts_of_users_and_of_items(home: Path, data: PreparedData, store: ArtifactStore) -> None:
    users, items = [str(token) for token in data.user_tokens], [str(token) for token in data.item_tokens]
    pq.write_table(pa.table({"user_id": users, "profile": [f"likes {user}" for user in users]}), home / "texts.parquet")
    pq.write_table(pa.table({"item_id": items, "text": [f"is {item}" for item in items]}), home / "items.parquet")
    short, long = (ProfileConfig(llm="file", path=f"{where}/texts.parquet") for where in ("~", home))
    assert generate(short, data, store, study_seed=1).coverage == 1
    assert profiles_key(short, data.key, 1) == profiles_key(long, data.key, 1)
    short, long = (ProfileConfig(llm="file", path=f"{where}/items.parquet") for where in ("~", home))
    assert write_item_texts(short, data, store, study_seed=1).texts()[0] == items
    assert item_texts_key(short, data.key, 1) == item_texts_key(long, data.key, 1)


def test_a_prompt_of_ones_own(home: Path) -> None:
    (home / "own.j2").write_text("{% block system %}s{% endblock %}{% block user %}u{% endblock %}")
    short, long = PromptTemplate("movies", "~/own.j2"), PromptTemplate("movies", f"{home}/own.j2")
    assert (short.digest, short.version) == (long.digest, long.version)


def test_a_model_its_tokenizer_and_its_engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_tiny_llama(home / "tiny", ["Loves films of the 1980s."])
    assert ModelTokens("~/tiny").count(["Loves films"]) == ModelTokens(f"{home}/tiny").count(["Loves films"])
    config = ProfileConfig(llm="vllm", model="~/tiny")
    assert _built(monkeypatch, config, TaskResources()).settings["model_source"] == f"{home}/tiny"
    given: list[Any] = []

    class NoRay(_NoRay):
        def remote(self, *some: Any, **options: Any) -> Any:
            return lambda engine: Started()

    class Started:
        def remote(self, model: str, *settings: Any) -> None:
            given.append(model)

    monkeypatch.setattr(vllm_sync, "ray", NoRay())
    vllm_sync.VllmSyncBackend(config, TaskResources())._start(1)
    assert given == [f"{home}/tiny"]
