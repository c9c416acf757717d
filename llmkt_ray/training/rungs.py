"""Rungs: the epochs of phase 2 at which a trial must be among the better ones to go on.

The rule is that of asynchronous successive halving (Li et al., MLSys 2020): one in `factor` goes on. Two things differ from ASHA in Ray
Tune, so that it is fair to two phases and reproducible: rungs count epochs of phase 2 (in phase 1 the order of trials may be
reversed: what is asked for there is not what is measured), and what a rung asks for is fixed before the trial starts, from
suggestions of earlier rounds, so that the order in which a cluster finishes decides nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from llmkt_ray.training.metrics import LOWER_IS_BETTER


def rung_epochs(grace: int, factor: int, phase2_epochs: int) -> Iterator[int]:
    """Yields the epochs of phase 2 after which trials are judged: grace, grace * factor, ... before the last one."""
    epoch = grace
    while epoch < phase2_epochs:
        yield epoch
        epoch *= factor


def best_by(rows: Sequence[Mapping[str, float | int]], epoch: int, metric: str) -> float | None:
    """Returns the best `valid_<metric>` among the first `epoch` epochs of phase 2; None where they are not all there or not evaluated.

    Args:
        rows: the epochs of a trial, see `TrialResult.epochs`.
        epoch: epochs of phase 2.
        metric: the metric; lower is better for a loss.
    """
    phase2 = [row for row in rows if row["phase"] == 2][:epoch]
    values = [value for row in phase2 if not math.isnan(value := float(row[f"valid_{metric}"]))]
    if len(phase2) < epoch or not values:
        return None
    return min(values) if metric in LOWER_IS_BETTER else max(values)


def cutoff(values: Sequence[float], factor: int, metric: str) -> float | None:
    """Returns what a rung asks for, the value of the last one of the best 1/factor; None with fewer than `factor` values."""
    if len(values) < factor:
        return None
    ranked = sorted(values, reverse=metric not in LOWER_IS_BETTER)
    return ranked[len(values) // factor - 1]


def is_behind(value: float, asked: float, metric: str) -> bool:
    """Says whether a trial ends at a rung."""
    return value > asked if metric in LOWER_IS_BETTER else value < asked
