"""A contrast: what an arm is better by than its control on the same seeds and users, as a difference and relative to the control.

Positive is better throughout: arm minus control, or, for a metric of which less is better (LogLoss), control minus arm.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from scipy import stats

from llmkt_ray.stats.interval import MIXED_FROM, SPLITS_FROM, Components, Interval, components, interval, mixed_interval, splits_interval


@dataclass(frozen=True)
class Contrast:
    """What an arm gains over its control.

    Attributes:
        difference: mean paired difference, in the metric's own unit; positive is better.
        relative: mean(arm) / mean(control) - 1, with its sign turned where less is better; None where the control's mean is 0.
        mean_arm, mean_control: the two means.
        components: variance components of the relative values (of the differences where `relative` is None).
        n_splits: frozen splits that the contrast was repeated on.
        between_splits: standard deviation of the splits' relative effects; NaN of one split.
        shared_users: variance of the mean relative effect that is due to the users whom all splits share; NaN of one split.
        over_splits: variance components of the relative values of (seeds, splits), splits in the place of users, of which the mixed
            model of both is made; None where there is no such model.
        seed_correlation: Pearson's correlation of the two arms' means over shared seeds, in [-1, 1]: what pairing seeds is worth. NaN
            below 3 seeds, or where an arm does not vary; the mean over splits.
        by_seed: each seed's mean difference, and its mean relative effect where there is one, `(2, seeds)` or `(1, seeds)`; of one split.
        by_user: the same of each user, `(2, users)` or `(1, users)`; of one split.
        users: the users of `by_user`, `(users,)`.
        seeds: the seeds of `by_seed`, `(seeds,)`.
    """

    difference: Interval
    relative: Interval | None
    mean_arm: float
    mean_control: float
    components: Components
    n_splits: int = 1
    between_splits: float = math.nan
    shared_users: float = math.nan
    over_splits: Components | None = None
    seed_correlation: float = math.nan
    by_seed: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), compare=False, repr=False)
    by_user: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), compare=False, repr=False)
    users: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64), compare=False, repr=False)
    seeds: tuple[int, ...] = field(default=(), compare=False, repr=False)

    @property
    def conditions(self) -> tuple[str, ...]:
        """What the interval is conditional on, in words."""
        seeds = (self.difference.conditional,) if self.difference.conditional else ()
        if self.n_splits == 1:
            return (*seeds, "conditional on one split")
        return seeds if self.n_splits >= SPLITS_FROM else (*seeds, f"conditional on these {self.n_splits} splits")


def contrast(
    arm: np.ndarray,
    control: np.ndarray,
    level: float = 0.95,
    *,
    users: np.ndarray | None = None,
    seeds: Sequence[int] | None = None,
    lower_is_better: bool = False,
) -> Contrast:
    """Returns the paired contrast of two tables `(seeds, users)` with rows and columns in the same order.

    The interval of the relative effect is the delta method's: that of the linearised values (a - (1 + r) b) / mean(b), which have
    the crossed structure of the differences.

    Args:
        arm: values of the arm.
        control: values of its control.
        level: of the intervals.
        users: ids of the columns, `(users,)` of unique integers, by which `over_splits` knows a user again; their places if None.
        seeds: ids of the rows, by which `over_splits` knows a seed again; their places if None.
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
    ids = np.arange(d.shape[1]) if users is None else np.asarray(users)
    if ids.shape != (d.shape[1],):
        raise ValueError(f"{d.shape[1]} users need as many ids, but got shape {ids.shape}")
    gain = mean_arm / mean_control - 1 if mean_control else None
    linear = None if gain is None else sign * ((arm - (1 + gain) * control) / mean_control + gain)
    tables = [d] if linear is None else [d, linear]
    return Contrast(
        difference,
        None if linear is None else replace(interval(linear, level), p=difference.p),
        mean_arm,
        mean_control,
        components(tables[-1]),
        seed_correlation=seed_correlation(arm, control),
        by_seed=np.stack([table.mean(axis=1) for table in tables]),
        by_user=np.stack([table.mean(axis=0) for table in tables]),
        users=ids,
        seeds=tuple(range(len(d)) if seeds is None else seeds),
    )


def seed_correlation(arm: np.ndarray, control: np.ndarray) -> float:
    """Returns Pearson's correlation of the seeds' means of two tables `(seeds, users)`; NaN below 3 seeds or without variation."""
    one, other = arm.mean(axis=1), control.mean(axis=1)
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(stats.pearsonr(one, other).statistic)


def over_splits(contrasts: Sequence[Contrast]) -> Contrast:
    """Returns one contrast from those of several splits of one dataset.

    From 3 splits on, a t interval over the splits' estimates: it speaks of new splits. All splits share their seeds and users, and what
    those do in each of them cannot be seen between splits. So what a user does in several splits is estimated from the covariance of its
    values and added, and from 3 seeds on the mixed model of seeds and splits, crossed, counts where it is wider. With 2, the mean of
    both with the uncertainty of one, conditional on these splits.

    Raises:
        ValueError: nothing is given, or the splits have different seeds (see `on_shared_seeds`): a seed that is missing in one of them
            would leave what seeds do unseen.
    """
    if not contrasts:
        raise ValueError("contrasts of at least one split are needed, but got none")
    if len({c.seeds for c in contrasts}) > 1:
        raise ValueError(f"contrasts of several splits need the same seeds in each, but got {[list(c.seeds) for c in contrasts]}")
    if len(contrasts) == 1:
        return replace(contrasts[0], by_user=np.empty((0, 0)), users=np.empty(0, dtype=np.int64))  # what a report keeps thousands of
    relatives = [c.relative for c in contrasts if c.relative is not None]
    parts = [c.components for c in contrasts]
    known = len(relatives) == len(contrasts)
    of_splits = np.stack([c.by_seed[1] for c in contrasts], axis=1) if known and _crossed(contrasts) else None
    shared = _shared_users(contrasts)
    return Contrast(
        difference=_pooled([c.difference for c in contrasts], contrasts, 0, shared[0]),
        relative=_pooled(relatives, contrasts, 1, shared[1]) if known else None,
        mean_arm=float(np.mean([c.mean_arm for c in contrasts])),
        mean_control=float(np.mean([c.mean_control for c in contrasts])),
        components=Components(*np.mean([(p.seed, p.user, p.rest) for p in parts], axis=0).tolist()),
        n_splits=len(contrasts),
        between_splits=float(np.std([r.estimate for r in relatives], ddof=1)) if known else math.nan,
        shared_users=shared[1] if known else math.nan,
        over_splits=None if of_splits is None else components(of_splits),
        seed_correlation=float(np.mean([c.seed_correlation for c in contrasts])),
    )


def _pooled(intervals: Sequence[Interval], contrasts: Sequence[Contrast], row: int, beside: float) -> Interval:
    """Returns the interval of the mean of some splits' estimates; `row` is that of their values in `by_seed`, `beside` what users share."""
    n_seeds, n_users = min(i.n_seeds for i in intervals), min(i.n_users for i in intervals)
    estimates, level = np.array([i.estimate for i in intervals]), intervals[0].level
    if len(intervals) < SPLITS_FROM:
        # Splits share seeds and users: their errors may go together, and then the mean of two is no surer than each.
        se, df, mean = float(np.mean([i.se for i in intervals])), min(i.df for i in intervals), float(estimates.mean())
        half = float(stats.t.ppf(0.5 + level / 2, df)) * se
        p = float(2 * stats.t.sf(abs(mean) / se, df)) if se > 0 else float(mean == 0)
        return Interval(mean, mean - half, mean + half, se, df, p, n_seeds, n_users, intervals[0].method, level)
    found = splits_interval(estimates, level, beside)
    if _crossed(contrasts):
        crossed = mixed_interval(np.stack([c.by_seed[row] for c in contrasts], axis=1), level, beside)  # (seeds, splits)
        p = max(found.p, crossed.p)
        wider = found if found.high >= crossed.high else replace(crossed, method="seeds and splits")
        found = replace(wider, p=p)
    return replace(found, n_seeds=n_seeds, n_users=n_users)


def on_shared_seeds(seeds: Mapping[int, Collection[int]]) -> dict[int, list[int]]:
    """Returns which seeds of each split to compare on: those that all splits have, in order.

    A trial that failed, or has not run, takes its seed out of every split: what a seed does in all of them is seen only where all have it.
    Where splits have no seed in common those with the fewest are left out.

    Args:
        seeds: split to the seeds that both arms have on it.
    """
    kept = {split: set(of_split) for split, of_split in seeds.items() if of_split}
    while kept and not (shared := set.intersection(*kept.values())):
        del kept[min(kept, key=lambda split: (len(kept[split]), -split))]
    return {split: sorted(shared) for split in sorted(kept)}


def _crossed(contrasts: Sequence[Contrast]) -> bool:
    """Returns whether seeds and splits make a table that a mixed model takes."""
    return len(contrasts) >= SPLITS_FROM and len(contrasts[0].seeds) >= MIXED_FROM


def _shared_users(contrasts: Sequence[Contrast]) -> list[float]:
    """Returns the part of the variance of a mean over splits that stays however many splits there are, because they share users: one number
    for each row of `by_user` that all have.

    It is the covariance of two splits' means, from that of the values of the users in both, averaged over pairs of splits; at least 0.
    Each pair has new rows of a user in test, so that what is due to those is not in it.
    """
    rows, found = min(len(c.by_user) for c in contrasts), []
    for one, other in combinations(contrasts, 2):
        _, here, there = np.intersect1d(one.users, other.users, assume_unique=True, return_indices=True)
        if len(here) < 2:
            found.append(np.zeros(rows))
            continue
        a, b = (values - values.mean(axis=1, keepdims=True) for values in (one.by_user[:rows, here], other.by_user[:rows, there]))
        covariance = (a * b).sum(axis=1) / (len(here) - 1)
        found.append(covariance * len(here) / (len(one.users) * len(other.users)))
    return [float(value) for value in np.mean(found, axis=0).clip(min=0)]
