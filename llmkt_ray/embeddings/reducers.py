"""Reducers: embeddings `(n, D)` to targets `(n, d)`, each seeded and fitted on users of the train split.

UMAP is what the paper uses (McInnes et al., arXiv 1802.03426). Its published code passes the width as the first positional argument, which
is `n_neighbors`, so that "64 dimensions" were 2 (METHOD.md, trap 1): here everything is passed by keyword and the width is asserted.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from llmkt_ray.errors import EmbeddingError, unknown_name
from llmkt_ray.study import ReductionConfig

Reduce = Callable[[np.ndarray, np.ndarray, int, int, ReductionConfig], np.ndarray]
"""(fit `(m, D)`, all `(n, D)`, dims, seed, config) to float64 `(n, dims)`."""
FLAT = 1e-6
"""Share of the largest spread at and below which what varies is rounding."""


def _umap(fit: np.ndarray, everything: np.ndarray, dims: int, seed: int, config: ReductionConfig) -> np.ndarray:
    # Imported here: umap compiles at import, and a study without it must not wait for that.
    import umap

    reducer = umap.UMAP(
        n_components=dims, n_neighbors=config.n_neighbors, min_dist=config.min_dist, metric="euclidean", random_state=seed, n_jobs=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        reduced = reducer.fit_transform(fit)
        return np.asarray(reduced if everything is fit else reducer.transform(everything))


def _pca(fit: np.ndarray, everything: np.ndarray, dims: int, seed: int, config: ReductionConfig) -> np.ndarray:
    from sklearn.decomposition import PCA

    return np.asarray(PCA(n_components=dims, svd_solver="full").fit(fit).transform(everything))


def _pca_whiten(fit: np.ndarray, everything: np.ndarray, dims: int, seed: int, config: ReductionConfig) -> np.ndarray:
    from sklearn.decomposition import PCA

    pca = PCA(n_components=dims, svd_solver="full", whiten=True).fit(fit)
    spread = np.sqrt(pca.explained_variance_)
    # Equal texts leave fewer directions than users: the others vary by rounding alone, and whitening would make noise a target.
    return np.where(spread <= FLAT * spread[0], 0.0, pca.transform(everything))


def _random_projection(fit: np.ndarray, everything: np.ndarray, dims: int, seed: int, config: ReductionConfig) -> np.ndarray:
    from sklearn.random_projection import GaussianRandomProjection

    return np.asarray(GaussianRandomProjection(n_components=dims, random_state=seed).fit(fit).transform(everything))


def _tsne(fit: np.ndarray, everything: np.ndarray, dims: int, seed: int, config: ReductionConfig) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(fit) - 1) / 3)
    return np.asarray(TSNE(n_components=dims, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(fit))


def _none(fit: np.ndarray, everything: np.ndarray, dims: int, seed: int, config: ReductionConfig) -> np.ndarray:
    return everything


@dataclass(frozen=True)
class Reducer:
    """One way to reduce.

    Attributes:
        reduce: the computation.
        largest: the largest width for (fitted users, encoder width, config).
        package: the distribution that computes it, None: we do.
        transforms: whether users outside the fitted sample can be reduced.
        revision: part of the key of what it makes; rises when a change of ours alters that.
    """

    reduce: Reduce
    largest: Callable[[int, int, ReductionConfig], int]
    package: str | None = "scikit-learn"
    transforms: bool = True
    revision: int = 1


def _linear_limit(users: int, dim: int, config: ReductionConfig) -> int:
    return min(users - 1, dim)


REDUCERS: dict[str, Reducer] = {
    # UMAP's spectral start takes dims + 1 eigenvectors of a users x users graph, so it needs dims + 2 users.
    "umap": Reducer(_umap, lambda users, dim, config: min(users - 2, dim), package="umap-learn"),
    "pca": Reducer(_pca, _linear_limit),
    "pca_whiten": Reducer(_pca_whiten, _linear_limit, revision=2),
    "random_projection": Reducer(_random_projection, lambda users, dim, config: dim),
    "tsne": Reducer(_tsne, lambda users, dim, config: min(3, dim), transforms=False),
    "none": Reducer(_none, lambda users, dim, config: dim, package=None),
}


def reduction_problem(config: ReductionConfig, dims: int, users: int, dim: int) -> str | None:
    """Returns why this reduction is impossible, as a sentence with the remedy, or None.

    Args:
        config: the reducer.
        dims: the wanted width.
        users: users with an embedding.
        dim: width of the embeddings.
    """
    if config.method not in REDUCERS:
        return unknown_name("reducer", config.method, REDUCERS)
    reducer = REDUCERS[config.method]
    fitted = min(users, config.fit_sample)
    if config.method == "umap" and config.n_neighbors >= fitted:
        return (
            f"umap with n_neighbors {config.n_neighbors} needs more users than that, but {fitted:,} have a profile; "
            "set reduction.n_neighbors lower"
        )
    if config.method == "none" and dims != dim:
        return (
            f"reducer none keeps the encoder's {dim} dims, but {dims} are wanted; "
            f"set reduction.dims to {dim} and transfer.projection to student"
        )
    if config.method == "tsne" and dims not in (2, 3):
        return (
            f"tsne makes 2 or 3 dims, but {dims} are wanted; "
            "set reduction.dims to 2 or 3 (with transfer.projection: student), or use umap or pca"
        )
    if not reducer.transforms and users > config.fit_sample:
        return (
            f"{config.method} cannot reduce users it was not fitted on, but {users:,} users exceed fit_sample {config.fit_sample:,}; "
            "raise it, or use pca"
        )
    largest = reducer.largest(fitted, dim, config)
    if not 1 <= dims <= largest:
        return (
            f"{config.method} cannot make {dims} dims of an encoder with {dim} dims and {fitted:,} users; "
            f"reduction.dims can be 1 to {max(largest, 0)} here, or choose an encoder with more dims"
        )
    return None


def reduce(config: ReductionConfig, vectors: np.ndarray, dims: int, seed: int) -> np.ndarray:
    """Returns targets before standardisation, float64 `(n, dims)`.

    Args:
        config: the reducer.
        vectors: embeddings `(n, dim)` of the users of the train split; a seeded sample is fitted above `config.fit_sample`.
        dims: the wanted width.
        seed: of everything that is drawn.

    Raises:
        EmbeddingError: the reduction is impossible, all embeddings are the same, or what came is not finite or of another width.
    """
    problem = reduction_problem(config, dims, *vectors.shape)
    if problem:
        raise EmbeddingError(problem)
    # Refused whatever the method: UMAP makes clusters of nothing, and scikit-learn's t-SNE ends the process.
    if float(vectors.std(axis=0).max()) <= FLAT * float(np.abs(vectors).max()):
        raise EmbeddingError(
            f"the embeddings of all {len(vectors):,} users are the same, so that {config.method} has nothing to tell them apart by; "
            "look at the profiles (llmkt profiles show), mend what writes them, or give the dataset an items table that tells items apart"
        )
    fit = vectors
    if len(vectors) > config.fit_sample:
        fit = vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), config.fit_sample, replace=False))]
    # How a matrix product is cut over threads changes its last bits, and a Ray worker has fewer threads than a plain process.
    with threadpool_limits(1):
        reduced = REDUCERS[config.method].reduce(fit, vectors, dims, seed, config)
    if reduced.shape != (len(vectors), dims) or not np.isfinite(reduced).all():
        raise EmbeddingError(
            f"{config.method} gave {reduced.shape} instead of {(len(vectors), dims)}, or values that are not finite; "
            "profiles that are nearly all the same can cause this: look at them, or use pca"
        )
    return reduced.astype(np.float64)
