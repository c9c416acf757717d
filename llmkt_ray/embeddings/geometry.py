"""The geometry of profile embeddings (METHOD.md, section 8): how alike users are, how many directions are used, who is near everybody.

Each figure is for all users and for the thirds of every type of user; profiles that are nearly the same text cannot tell users apart.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmkt_ray.data.user_types import THIRDS

NEIGHBOURS = 10
_SAMPLE = 2_000
_FEWEST = 3


def geometry(vectors: np.ndarray, reduced: np.ndarray, groups: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Returns figures of embeddings; above 2,000 users they are taken on a seeded sample.

    Args:
        vectors: embeddings `(n, dim)`.
        reduced: targets `(n, d)` of the same users.
        groups: type of user to the third (0, 1, 2; -1: not known) of each of these users, `(n,)`.
        seed: of the sample.

    Returns:
        Figure to {all, by}, `by` holding type to third to value; None where there are too few users.
        mean_cosine: mean over pairs, in [-1, 1]; real sets of profiles lie near .82. mean_cosine_centred: the same after the mean vector is
        taken off; near 0. effective_rank: exp of the entropy of the spectrum's shares (Roy & Vetterli 2007), at least 1, higher: more
        directions are used. hubness: skewness of how often a user is among the 10 nearest of others (Radovanovic et al. 2010); near 0 is
        best. knn_overlap: share of the 10 nearest neighbours kept by the reduction, in [0, 1].
    """
    chosen = np.arange(len(vectors))
    if len(chosen) > _SAMPLE:
        chosen = np.sort(np.random.default_rng(seed).choice(len(chosen), _SAMPLE, replace=False))
    mine = np.asarray(vectors, np.float64)[chosen]
    before, after = _neighbours(mine), _neighbours(np.asarray(reduced, np.float64)[chosen])
    times = np.bincount(before.ravel(), minlength=len(mine)).astype(np.float64)
    kept = np.array([len(np.intersect1d(a, b)) / max(1, len(a)) for a, b in zip(before, after, strict=True)])
    centred = mine - mine.mean(axis=0)

    def figures(rows: np.ndarray) -> dict[str, float | None]:
        if len(rows) < _FEWEST:
            return dict.fromkeys(("mean_cosine", "mean_cosine_centred", "effective_rank", "hubness", "knn_overlap"))
        return {
            "mean_cosine": mean_cosine(mine[rows]),
            "mean_cosine_centred": mean_cosine(centred[rows]),
            "effective_rank": effective_rank(mine[rows]),
            "hubness": skewness(times[rows]),
            "knn_overlap": float(kept[rows].mean()),
        }

    whole = figures(np.arange(len(mine)))
    by = {name: {label: figures(np.flatnonzero(third[chosen] == at)) for at, label in enumerate(THIRDS)} for name, third in groups.items()}
    return {
        name: {"all": value, "by": {kind: {label: of[name] for label, of in thirds.items()} for kind, thirds in by.items()}}
        for name, value in whole.items()
    }


def mean_cosine(vectors: np.ndarray) -> float:
    """Returns the mean cosine over all pairs of different rows, in [-1, 1]; rows of zeros count as unlike everything."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    total, n = unit.sum(axis=0), len(unit)
    return float((total @ total - np.square(unit).sum()) / (n * (n - 1)))


def effective_rank(vectors: np.ndarray) -> float:
    """Returns exp of the entropy of the shares of the singular values of the centred rows; 1 where all rows are equal."""
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    shares = values / values.sum() if values.sum() > 1e-12 else np.array([1.0])
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def skewness(values: np.ndarray) -> float:
    """Returns the third standardised moment; 0 where all values are equal."""
    spread = float(values.std())
    return float(np.mean(((values - values.mean()) / spread) ** 3)) if spread > 0 else 0.0


def _neighbours(vectors: np.ndarray) -> np.ndarray:
    """Returns the indices of each row's nearest others (Euclidean), `(n, at most 10)`."""
    from sklearn.neighbors import NearestNeighbors

    return np.asarray(
        NearestNeighbors(n_neighbors=min(NEIGHBOURS, max(1, (len(vectors) - 1) // 2))).fit(vectors).kneighbors(return_distance=False)
    )
