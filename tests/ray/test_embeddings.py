"""A pool of any size gives the same floats as this process (HOUSE.md, habit 6)."""

from pathlib import Path

import numpy as np
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.embeddings.encode import encode
from llmkt_ray.profiles.generate import generate
from llmkt_ray.study import EmbeddingConfig, ProfileConfig
from tests.films import film_split

pytestmark = pytest.mark.ray


def test_one_worker_two_workers_and_none_give_equal_bits(two_workers: None, tmp_path: Path) -> None:
    config = EmbeddingConfig(batch_size=6)
    results, seen = [], []
    for workers in (0, 1, 2):
        store = ArtifactStore(tmp_path / f"artifacts-{workers}")
        data = film_split(tmp_path / "films", store)
        profiles = generate(ProfileConfig(llm="template"), data, store, study_seed=1)
        results.append(encode(config, profiles, store, workers=workers, progress=lambda done, total: seen.append((done, total))))
    for result in results[1:]:
        assert result.key == results[0].key
        assert result.user_ids.tolist() == results[0].user_ids.tolist()
        np.testing.assert_array_equal(result.vectors, results[0].vectors)
    assert [step for step in seen if step[0] == 40] == [(40, 40)] * 3
