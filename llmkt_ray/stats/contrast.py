"""A contrast: what an arm is better by than its control on the same seeds and users, as a difference and relative to the control.

Positive is better throughout: arm minus control, or, for a metric of which less is better (LogLoss), control minus arm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from llmkt_ray.stats.interval import MIXED_FROM, SPLITS_FROM, Components, Interval, components, interval, mixed_interval


@dataclass(frozen=True)
class Contrast:
    """What an arm gains over its control.

    Attributes:
        difference: mean paired difference, in the metric's own unit; positive is better.
        relative: mean(arm) / mean(control) - 1, with its sign turned where less is better; None where the control's mean is 0.
        mean_arm, mean_control: the two means.
        components: variance components of the relative values (of the differences where `relative` is None).
        n_splits: frozen splits that the contrast was repeated on.
        seed_correlation: Pearson's correlation of the two arms' means over shared seeds, in [-1, 1]: what pairing seeds is worth. NaN
            below 3 seeds, or where an arm does not vary; the mean over splits.
        by_seed: each seed's mean difference, and its mean relative effect where there is one, `(2, seeds)` or `(1, seeds)`; of one split.
    """

    difference: Interval
    relative: Interval | None
    mean_arm: float
    mean_control: float
    components: Components
    n_splits: int = 1
    seed_correlation: float = math.nan
    by_seed: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), compare=False, repr=False)

    @property
    def conditions(self) -> tuple[str, ...]:
        """What the interval is conditional on, in words."""
        seeds = (self.difference.conditional,) if self.difference.conditional else ()
        if self.n_splits == 1:
            return (*seeds, "conditional on one split")
        return seeds if self.n_splits >= SPLITS_FROM else (*seeds, f"conditional on these {self.n_splits} splits")


def contrast(arm: np.ndarray, control: np.ndarray, level: float = 0.95, *, lower_is_better: bool = False) -> Contrast:
    """Returns the paired contrast of two tables `(seeds, users)` with rows and columns in the same order.

    The interval of the relative effect is the delta method's: that of the linearised values (a - (1 + r) b) / mean(b), which have
    the crossed structure of the differences.

    Args:
        arm: values of the arm.
        control: values of its control.
        level: of the intervals.
        lower_is_better: whether less of the metric is better: then a positive contrast is a decrease.

    Raises:
        ValueError: the shapes differ, or a table is not one that `interval` takes.
    """
    arm, control = np.asarray(arm, dtype=np.float64), np.asarray(control, dtype=np.float64)
    if arm.shape != control.shape:
        raise ValueError(f"a paired contrast needs equal seeds and users, but got {arm.shape} and {control.shape}")
    sign = -1.0 if lower_is_better else 1.0
    d = sign * (arm - control)
    difference = interval(d, level)
    mean_arm, mean_control = float(arm.mean()), float(control.mean())
    shared = seed_correlation(arm, control)
    if mean_control == 0:
        return Contrast(difference, None, mean_arm, mean_control, components(d), seed_correlation=shared, by_seed=d.mean(axis=1)[None])
    gain = mean_arm / mean_control - 1
    linear = sign * ((arm - (1 + gain) * control) / mean_control + gain)
    relative = interval(linear, level)
    means = np.stack([d.mean(axis=1), linear.mean(axis=1)])
    relative = replace(relative, p=difference.p)
    return Contrast(difference, relative, mean_arm, mean_control, components(linear), seed_correlation=shared, by_seed=means)


def seed_correlation(arm: np.ndarray, control: np.ndarray) -> float:
    """Returns Pearson's correlation of the seeds' means of two tables `(seeds, users)`; NaN below 3 seeds or without variation."""
    one, other = arm.mean(axis=1), control.mean(axis=1)
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(stats.pearsonr(one, other).statistic)


def over_splits(contrasts: Sequence[Contrast]) -> Contrast:
    """Returns one contrast from those of several splits of one dataset.

    From 3 splits on, a t interval over the splits' estimates: it speaks of new splits. All splits share their seeds, so that what a
    seed does in each of them cannot be seen there: from 3 seeds on the mixed model of seeds and splits, crossed, counts where it is
    wider. With 2, the mean of both with the uncertainty of one, conditional on these splits.

    Raises:
        ValueError: nothing is given.
    """
    if not contrasts:
        raise ValueError("contrasts of at least one split are needed, but got none")
    if len(contrasts) == 1:
        return contrasts[0]
    relatives = [c.relative for c in contrasts if c.relative is not None]
    parts = [c.components for c in contrasts]
    return Contrast(
        difference=_pooled([c.difference for c in contrasts], [c.by_seed[:1] for c in contrasts]),
        relative=_pooled(relatives, [c.by_seed[1:] for c in contrasts]) if len(relatives) == len(contrasts) else None,
        mean_arm=float(np.mean([c.mean_arm for c in contrasts])),
        mean_control=float(np.mean([c.mean_control for c in contrasts])),
        components=Components(*np.mean([(p.seed, p.user, p.rest) for p in parts], axis=0).tolist()),
        n_splits=len(contrasts),
        seed_correlation=float(np.mean([c.seed_correlation for c in contrasts])),
    )


def _pooled(intervals: Sequence[Interval], by_seed: Sequence[np.ndarray]) -> Interval:
    first, n = intervals[0], len(intervals)
    estimates = np.array([i.estimate for i in intervals])
    if n >= SPLITS_FROM:
        se, df = float(estimates.std(ddof=1) / math.sqrt(n)), float(n - 1)
    else:
        # Splits share seeds and users: their errors may go together, and then the mean of two is no surer than each.
        se, df = float(np.mean([i.se for i in intervals])), min(i.df for i in intervals)
    mean = float(estimates.mean())
    half = float(stats.t.ppf(0.5 + first.level / 2, df)) * se
    p = float(2 * stats.t.sf(abs(mean) / se, df)) if se > 0 else float(mean == 0)
    n_seeds, n_users = min(i.n_seeds for i in intervals), min(i.n_users for i in intervals)
    method = "splits" if n >= SPLITS_FROM else first.method
    found = Interval(mean, mean - half, mean + half, se, df, p, n_seeds, n_users, method, first.level)
    seeds = min(means.size for means in by_seed)
    if n < SPLITS_FROM or seeds < MIXED_FROM or any(means.size != seeds for means in by_seed):
        return found
    crossed = mixed_interval(np.concatenate(by_seed).T, first.level)  # (seeds, splits)
    wider = found if half >= crossed.high - crossed.estimate else replace(crossed, n_users=n_users, method=method)
    return replace(wider, p=max(found.p, crossed.p))
