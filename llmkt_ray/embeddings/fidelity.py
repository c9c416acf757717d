"""What a reduction keeps: neighbourhoods (trustworthiness, kNN overlap) and content (held-out reconstruction)."""

from typing import Any

import numpy as np

NEIGHBOURS = 10
_SAMPLE = 2_000
_RIDGE = 1e-3


def fidelity(vectors: np.ndarray, reduced: np.ndarray, seed: int) -> dict[str, Any]:
    """Returns figures about a reduction; above 2,000 users they are taken on a seeded sample.

    Args:
        vectors: embeddings `(n, dim)`.
        reduced: targets `(n, d)` of the same users.
        seed: of the sample and of the held-out users.

    Returns:
        trustworthiness: in [0, 1], higher is better: whether neighbours in the target are neighbours in the embedding
            (Venna & Kaski 2001).
        knn_overlap: in [0, 1], higher is better: share of each user's 10 nearest neighbours that stay so.
        reconstruction_r2: at most 1, higher is better: variance of the embedding explained by a linear readout of the target, on the
            fifth of the users that the readout was not fitted on.
        sample: users the figures were taken on. A figure is None where there are too few users for it.
    """
    from sklearn.manifold import trustworthiness

    rng = np.random.default_rng(seed)
    if len(vectors) > _SAMPLE:
        chosen = np.sort(rng.choice(len(vectors), _SAMPLE, replace=False))
        vectors, reduced = vectors[chosen], reduced[chosen]
    n = len(vectors)
    neighbours = min(NEIGHBOURS, (n - 1) // 2)
    enough = neighbours >= 1
    return {
        "trustworthiness": float(trustworthiness(vectors, reduced, n_neighbors=neighbours)) if enough else None,
        "knn_overlap": knn_overlap(vectors, reduced, neighbours) if enough else None,
        "reconstruction_r2": reconstruction_r2(vectors, reduced, rng) if n >= 10 else None,
        "sample": n,
    }


def knn_overlap(vectors: np.ndarray, reduced: np.ndarray, neighbours: int) -> float:
    """Returns the mean share of the `neighbours` nearest (Euclidean, self left out) that two spaces have in common, in [0, 1]."""
    from sklearn.neighbors import NearestNeighbors

    before, after = (NearestNeighbors(n_neighbors=neighbours).fit(space).kneighbors(return_distance=False) for space in (vectors, reduced))
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(before, after, strict=True)]) / neighbours)


def reconstruction_r2(vectors: np.ndarray, reduced: np.ndarray, rng: np.random.Generator) -> float:
    """Returns the held-out R2 (over all dims together) of a ridge readout from `reduced` to `vectors`."""
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score

    order = rng.permutation(len(vectors))
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    scale = reduced[kept].std(axis=0)
    scaled = (reduced - reduced[kept].mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    readout = Ridge(alpha=_RIDGE * len(kept)).fit(scaled[kept], vectors[kept])
    return float(r2_score(vectors[held], readout.predict(scaled[held]), multioutput="variance_weighted"))
