"""The number of threads of a process changes no float: a plain process and a Ray worker make the same targets."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from llmkt_ray.embeddings import reducers
from llmkt_ray.embeddings.encoders import encoder_of
from llmkt_ray.embeddings.reducers import reduce
from llmkt_ray.study import EmbeddingConfig, ReductionConfig

VECTORS = np.random.default_rng(0).standard_normal((600, 200))
TEXTS = [" ".join(f"word{n}" for n in np.random.default_rng(at).integers(0, 400, 30)) for at in range(300)]


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize("method", ["pca", "pca_whiten", "random_projection"])
def test_reducers(method: str) -> None:
    made = []
    for threads in (1, 4):
        with threadpool_limits(threads):
            made.append(reduce(ReductionConfig(method=method), VECTORS, 32, seed=1).tobytes())
    assert made[0] == made[1]


def test_every_reducer_computes_on_one_thread_and_gives_the_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []

    def spy(fit: np.ndarray, everything: np.ndarray, dims: int, seed: int, config: ReductionConfig) -> np.ndarray:
        seen.append(blas_threads())
        return everything

    monkeypatch.setitem(reducers.REDUCERS, "none", reducers.Reducer(spy, lambda users, dim, config: dim))
    with threadpool_limits(4):
        reduce(ReductionConfig(method="none"), VECTORS, 200, seed=1)
        assert blas_threads() == {4}
    assert seen == [{1}]


def test_tfidf_svd() -> None:
    made = []
    for threads in (1, 4):
        with threadpool_limits(threads):
            made.append(encoder_of(EmbeddingConfig(encoder="tfidf_svd", dims=64)).encode(TEXTS).tobytes())
    assert made[0] == made[1]
