import numpy as np
import pytest

from llmkt_ray.embeddings.geometry import effective_rank, geometry, mean_cosine, skewness


def test_figures_by_hand() -> None:
    assert mean_cosine(np.array([[1.0, 0], [1, 0], [0, 1]])) == pytest.approx(1 / 3)
    assert effective_rank(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])) == pytest.approx(2)
    assert effective_rank(np.array([[1.0, 0], [2, 0], [3, 0]])) == pytest.approx(1)
    assert effective_rank(np.ones((4, 3))) == 1
    assert skewness(np.array([0.0, 0, 0, 4])) > 1
    assert skewness(np.ones(3)) == 0


def test_alike_texts_and_the_types_of_users() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(90, 8))
    vectors[:30] = vectors[0] + 1e-3 * rng.normal(size=(30, 8))
    third = np.repeat([0, 1, 2], 30)
    found = geometry(vectors, vectors[:, :7], {"activity": third}, 0)
    by = found["mean_cosine"]["by"]["activity"]
    assert by["low"] > 0.99
    assert abs(by["high"]) < 0.2
    assert found["effective_rank"]["by"]["activity"]["high"] > 6
    assert geometry(vectors, vectors, {}, 0)["knn_overlap"]["all"] == 1
    assert found["knn_overlap"]["all"] < 1
    assert geometry(vectors, vectors, {"a": np.full(90, -1)}, 0)["hubness"]["by"]["a"]["low"] is None
