import numpy as np
import pytest
from sklearn.decomposition import PCA

from llmkt_ray.embeddings.fidelity import fidelity, knn_overlap, reconstruction_r2
from llmkt_ray.embeddings.reducers import REDUCERS, reduce, reduction_problem
from llmkt_ray.embeddings.targets import standardize
from llmkt_ray.errors import EmbeddingError
from llmkt_ray.study import ReductionConfig

RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((4, 20)) * 4
VECTORS = CENTRES[np.arange(90) % 4] + RNG.standard_normal((90, 20))


def _config(method: str, **settings: int) -> ReductionConfig:
    return ReductionConfig(method=method, n_neighbors=10, **settings)


def test_trap_01_umap_gives_the_width_that_was_asked_for() -> None:
    """`umap.UMAP(8)` sets n_neighbors and gives 2 dims."""
    import umap

    assert umap.UMAP(8).n_components == 2
    assert reduce(_config("umap"), VECTORS, 8, seed=1).shape == (90, 8)


@pytest.mark.parametrize(
    ("method", "dims"), [("umap", 4), ("pca", 4), ("pca_whiten", 4), ("random_projection", 4), ("tsne", 2), ("none", 20)]
)
def test_trap_02_every_reducer_is_seeded_and_gives_its_width(method: str, dims: int) -> None:
    first, again, other = (reduce(_config(method), VECTORS, dims, seed) for seed in (1, 1, 2))
    assert first.shape == (90, dims)
    np.testing.assert_array_equal(first, again)
    draws = method in ("umap", "random_projection")
    assert draws == (not np.array_equal(first, other)) or method == "tsne"


def test_umap_keeps_the_clusters_together() -> None:
    reduced = reduce(_config("umap"), VECTORS, 3, seed=1)
    same = np.arange(90)[:, None] % 4 == np.arange(90)[None, :] % 4
    distance = np.linalg.norm(reduced[:, None] - reduced[None], axis=2)
    assert distance[same].mean() < 0.5 * distance[~same].mean()


def test_pca_is_scikit_learns() -> None:
    np.testing.assert_allclose(reduce(_config("pca"), VECTORS, 5, seed=1), PCA(5).fit_transform(VECTORS), atol=1e-8)
    whitened = reduce(_config("pca_whiten"), VECTORS, 5, seed=1)
    np.testing.assert_allclose(np.cov(whitened, rowvar=False), np.eye(5), atol=1e-8)


def test_above_a_size_a_sample_is_fitted_and_the_rest_transformed() -> None:
    many = np.repeat(VECTORS, 3, axis=0) + np.random.default_rng(1).standard_normal((270, 20)) * 0.01
    config = _config("pca", fit_sample=100)
    reduced = reduce(config, many, 3, seed=4)
    assert reduced.shape == (270, 3)
    chosen = np.sort(np.random.default_rng(4).choice(270, 100, replace=False))
    np.testing.assert_allclose(reduced, PCA(3).fit(many[chosen]).transform(many))
    assert reduce(_config("umap", fit_sample=100), many, 3, seed=4).shape == (270, 3)


@pytest.mark.parametrize(
    ("method", "dims", "users", "dim", "message"),
    [
        ("umap", 400, 900, 384, "cannot make 400 dims of an encoder with 384 dims and 900 users; reduction.dims can be 1 to 384"),
        ("umap", 64, 50, 384, "reduction.dims can be 1 to 48"),
        ("umap", 4, 10, 384, "n_neighbors 10 needs more users than that, but 10 have a profile"),
        ("pca", 385, 900, 384, "reduction.dims can be 1 to 384"),
        ("pca", 64, 64, 384, "reduction.dims can be 1 to 63"),
        ("random_projection", 385, 900, 384, "reduction.dims can be 1 to 384"),
        ("tsne", 64, 900, 384, "tsne makes 2 or 3 dims, but 64 are wanted"),
        ("tsne", 2, 30_000, 384, "cannot reduce users it was not fitted on, but 30,000 users exceed fit_sample 20,000"),
        ("none", 64, 900, 384, "keeps the encoder's 384 dims, but 64 are wanted"),
        ("umpa", 64, 900, 384, "reducer 'umpa' is not known; did you mean 'umap'"),
    ],
)
def test_impossible_reductions_say_what_is_possible(method: str, dims: int, users: int, dim: int, message: str) -> None:
    problem = reduction_problem(_config(method), dims, users, dim)
    assert problem is not None
    assert message in problem


def test_impossible_reductions_raise() -> None:
    with pytest.raises(EmbeddingError, match="cannot make 21 dims"):
        reduce(_config("pca"), VECTORS, 21, seed=1)


def test_every_possible_width_is_possible() -> None:
    for method, reducer in REDUCERS.items():
        config = _config(method)
        largest = reducer.largest(90, 20, config)
        dims = 20 if method == "none" else largest
        assert reduction_problem(config, dims, 90, 20) is None
        assert reduction_problem(config, largest + 1, 90, 20) is not None


def test_fidelity_against_what_it_must_be() -> None:
    same = fidelity(VECTORS, VECTORS, seed=1)
    assert same["trustworthiness"] == pytest.approx(1)
    assert same["knn_overlap"] == 1
    assert same["reconstruction_r2"] > 0.99
    noise = fidelity(VECTORS, np.random.default_rng(3).standard_normal((90, 4)), seed=1)
    assert noise["trustworthiness"] < 0.65
    assert noise["knn_overlap"] < 0.3
    assert noise["reconstruction_r2"] < 0.1


def test_knn_overlap_by_hand() -> None:
    line, folded = np.array([[0.0], [1.0], [2.0], [3.1]]), np.array([[0.0], [1.0], [2.0], [0.9]])
    # Nearest neighbours: 0:1 1:0 2:1 3:2 before; 0:3 1:3 2:1 3:1 after.
    assert knn_overlap(line, folded, 1) == 0.25


def test_reconstruction_is_held_out() -> None:
    """A target as wide as the users fits any users it was shown; on held-out users it explains nothing."""
    rng = np.random.default_rng(0)
    vectors, memory = rng.standard_normal((50, 5)), rng.standard_normal((50, 60))
    assert reconstruction_r2(vectors, memory, rng) < 0


@pytest.mark.parametrize("method", ["umap", "pca", "pca_whiten", "random_projection", "tsne", "none"])
def test_embeddings_that_are_all_the_same_are_refused(method: str) -> None:
    """scikit-learn's t-SNE ends the process on them, and UMAP finds clusters in them."""
    same = np.tile(VECTORS[0], (40, 1))
    for vectors in (same, same * (1 + 1e-9 * RNG.standard_normal(same.shape)), np.zeros((40, 20))):
        with pytest.raises(EmbeddingError, match=r"embeddings of all 40 users are the same, so that .* look at the profiles"):
            reduce(_config(method), vectors, 20 if method == "none" else 2, seed=1)


@pytest.mark.parametrize("method", ["pca", "pca_whiten"])
def test_directions_that_vary_by_rounding_alone_are_no_target(method: str) -> None:
    """Five different texts among forty users have four directions; whitening would blow the rounding of four others up to full size."""
    vectors = RNG.standard_normal((5, 20))[RNG.integers(5, size=40)]
    standard, constant = standardize(reduce(_config(method), vectors, 8, seed=1))
    assert constant == 4
    np.testing.assert_allclose(standard[:, :4].std(axis=0), 1)
    assert not standard[:, 4:].any()
