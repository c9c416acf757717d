from pathlib import Path

import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from tests.films import film_split


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def data(tmp_path: Path, store: ArtifactStore) -> PreparedData:
    return film_split(tmp_path / "films", store)
