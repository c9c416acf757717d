"""Control targets: each arm's twin of a treated trial, differing in one thing only (METHOD.md, section 4)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.targets import Targets, check_users
from llmkt_ray.errors import EmbeddingError, unknown_name

STRATA = 10


def _treated(targets: Targets, data: PreparedData, rng: np.random.Generator) -> np.ndarray:
    return targets.matrix


def _shuffled(targets: Targets, data: PreparedData, rng: np.random.Generator) -> np.ndarray:
    """Every user gets another user's target: the same targets, all knowledge about the user gone."""
    return _permuted(targets.matrix, [np.flatnonzero(targets.present)], rng)


def _shuffled_strata(targets: Targets, data: PreparedData, rng: np.random.Generator) -> np.ndarray:
    """Every user gets the target of a user of like activity: what a profile says through its length alone stays."""
    rows = np.bincount(data.train_full.user, minlength=data.n_users)
    users = np.flatnonzero(targets.present)
    # Ranks, ties broken at random: strata of equal size whatever the distribution, and never a stratum of one.
    ranked = users[np.lexsort((rng.random(len(users)), rows[users]))]
    return _permuted(targets.matrix, np.array_split(ranked, max(1, min(STRATA, len(ranked) // 2))), rng)


def _gaussian(targets: Targets, data: PreparedData, rng: np.random.Generator) -> np.ndarray:
    """Random targets with the mean and covariance of the real ones."""
    real = np.asarray(targets.matrix, dtype=np.float64)[targets.present]
    centre = real.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(real, rowvar=False, bias=True).reshape(real.shape[1], -1))
    # Rounding can leave a tiny negative eigenvalue where dimensions depend on each other.
    draws = (rng.standard_normal(real.shape) * np.sqrt(np.maximum(values, 0.0))) @ axes.T
    matrix = np.zeros_like(targets.matrix)
    matrix[targets.present] = centre + draws
    return matrix


def _constant(targets: Targets, data: PreparedData, rng: np.random.Generator) -> np.ndarray:
    """Everybody gets the mean target (0 where targets are standardised): a pull to one point, no knowledge."""
    matrix = np.zeros_like(targets.matrix)
    matrix[targets.present] = targets.matrix[targets.present].mean(axis=0, dtype=np.float64)
    return matrix


CONTROLS: dict[str, Callable[[Targets, PreparedData, np.random.Generator], np.ndarray]] = {
    "treated": _treated,
    "shuffled": _shuffled,
    "shuffled_strata": _shuffled_strata,
    "gaussian": _gaussian,
    "constant": _constant,
}
"""Arms whose targets are a function of the treated ones."""


def control_targets(arm: str, targets: Targets, data: PreparedData, seed: int) -> Targets:
    """Returns the targets of an arm: a pure function of its inputs.

    Args:
        arm: one of `CONTROLS`; "treated" gives the targets as they are.
        targets: the treated targets.
        data: the split they are for.
        seed: of what the arm draws; equal for the same arm of equal seeds.

    Raises:
        EmbeddingError: there is no such arm, the targets are of other users, or there are too few to permute.
    """
    check_users(targets, data)
    if arm not in CONTROLS:
        raise EmbeddingError(unknown_name("control of targets", arm, CONTROLS))
    if arm != "treated" and int(targets.present.sum()) < 2:
        raise EmbeddingError(f"arm {arm!r} needs at least 2 users with a profile, but {int(targets.present.sum())} have one")
    matrix = CONTROLS[arm](targets, data, np.random.default_rng(seed))
    return replace(targets, matrix=matrix.astype(np.float32, copy=False))


def _permuted(matrix: np.ndarray, groups: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Returns rows exchanged inside each group of indices, no row staying where it was (one random cycle a group)."""
    result = np.array(matrix)
    for group in groups:
        order = rng.permutation(group)
        result[order] = matrix[np.roll(order, 1)]
    return result
