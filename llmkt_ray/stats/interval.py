"""Intervals of a mean over users and seeds, both random: the one place where uncertainty is computed.

A table `d` of shape `(seeds, users)` holds one value a seed and user, usually a difference of two arms on the same seed and user:

    d[s, u] = mu + seed[s] + user[u] + rest[s, u]

Three estimators of the interval of mu, by the number of seeds (METHOD.md, section 6):

* fewer than 3 seeds: a t interval over users. It says nothing about other seeds, and is labelled so.
* 3 to 9 seeds: the mixed model's variance, (MS_seed + max(MS_user - MS_rest, 0)) / (S U), with Hillis's denominator degrees of
  freedom, which are at least S - 1, taken at an upper bound of MS_seed: with few seeds MS_seed is often small by chance, and as it
  is it would make the interval short twice, by the variance and by the degrees of freedom. This is the standard analysis of studies
  with crossed random readers and cases; seeds are the readers, users the cases. Hillis (2007), Statistics in Medicine 26, 596-619;
  Dorfman, Berbaum and Metz (1992).
* 10 seeds and more: the crossed ("pigeonhole") bootstrap, which resamples seeds and users independently: Owen (2007), Annals of
  Applied Statistics 1, 386-411. Its percentiles are widened for the small number of seeds: the expanded percentile interval of
  Hesterberg (2015), The American Statistician 69, 371-386.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import special, stats

MIXED_FROM, BOOTSTRAP_FROM = 3, 10
"""Smallest numbers of seeds at which the mixed model and the crossed bootstrap are used."""
SPLITS_FROM = 3
"""Smallest number of splits whose estimates give a t interval over splits."""
RESAMPLES = 2000
GUARD = 0.25
"""One minus the confidence of the upper bound of MS_seed in the degrees of freedom of a 95 % interval, chosen by simulation: with 3
seeds it misses in 3.6 to 5.4 % of studies, whatever the shares of seeds and users, instead of 5.0 to 8.0 % (benchmarks/statistics).
At other error rates it goes with their power 2/3: with one bound for all, the small p-values that corrections for many tests live on
would be several times too small."""
USERS_ONLY = "conditional on these seeds"
_MANY_DF = 1e6
"""Degrees of freedom that make a normal distribution of t; a number, and not infinity, because results are written as JSON."""
_SEEN = 10
"""Resamples on the far side of 0 from which on their share is a p-value; with fewer, the tail is that of t."""


@dataclass(frozen=True)
class Interval:
    """A mean with its interval.

    Attributes:
        estimate: the mean.
        low, high: bounds of the two-sided interval.
        se: standard error, in the unit of the estimate.
        df: degrees of freedom of t; those of the seeds for the bootstrap.
        p: two-sided p-value of "the mean is 0"; the interval excludes 0 exactly where p < 1 - level.
        n_seeds, n_users: shape of the table; of several splits, the smallest.
        method: "users", "mixed" or "bootstrap"; "splits" for a t interval over the estimates of several splits, "seeds and
            splits" for the mixed model of both where that is wider.
        level: nominal coverage, in (0, 1).
    """

    estimate: float
    low: float
    high: float
    se: float
    df: float
    p: float
    n_seeds: int
    n_users: int
    method: str
    level: float

    @property
    def conditional(self) -> str:
        """What the interval is conditional on, in words; empty where it speaks of new seeds. Several splits do not make up for few."""
        return USERS_ONLY if self.n_seeds < MIXED_FROM else ""


@dataclass(frozen=True)
class Components:
    """Variance components of a table `(seeds, users)`, by the analysis of variance, truncated at 0.

    Attributes:
        seed: variance between seeds that all users share.
        user: variance between users that all seeds share.
        rest: what is left, the interaction included.
    """

    seed: float
    user: float
    rest: float

    def variance(self, n_seeds: int, n_users: int) -> float:
        """Returns the variance of the mean of a table of this shape."""
        return self.seed / n_seeds + self.user / n_users + self.rest / (n_seeds * n_users)


def mean_squares(d: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean squares of seeds, users and rest of a table `(S, U)` with S >= 2 and U >= 2."""
    n_seeds, n_users = d.shape
    centred = d - d.mean()
    by_seed, by_user = centred.mean(axis=1), centred.mean(axis=0)
    rest = centred - by_seed[:, None] - by_user[None, :]
    return (
        float(n_users * (by_seed @ by_seed) / (n_seeds - 1)),
        float(n_seeds * (by_user @ by_user) / (n_users - 1)),
        float((rest * rest).sum() / ((n_seeds - 1) * (n_users - 1))),
    )


def components(d: np.ndarray) -> Components:
    """Returns the variance components of a table `(S, U)`; with one seed everything counts as the users'."""
    table = _checked(d)
    if table.shape[0] == 1:
        return Components(0.0, float(table[0].var(ddof=1)), 0.0)
    seed, user, rest = mean_squares(table)
    n_seeds, n_users = table.shape
    return Components(max((seed - rest) / n_users, 0.0), max((user - rest) / n_seeds, 0.0), rest)


def interval(d: np.ndarray, level: float = 0.95) -> Interval:
    """Returns the mean of a table `(seeds, users)` with the interval that its number of seeds allows.

    Raises:
        ValueError: the table is empty, has fewer than 2 users, holds NaN or infinity, or `level` is not in (0, 1).
    """
    table = _checked(d)
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), but got {level}")
    if table.shape[0] < MIXED_FROM:
        return users_interval(table, level)
    return mixed_interval(table, level) if table.shape[0] < BOOTSTRAP_FROM else bootstrap_interval(table, level)


def users_interval(d: np.ndarray, level: float = 0.95) -> Interval:
    """Returns the t interval over users of their means over the given seeds; it does not speak of other seeds."""
    per_user = d.mean(axis=0)
    se = float(per_user.std(ddof=1) / math.sqrt(len(per_user)))
    return _t_interval(d, se, len(per_user) - 1, "users", level)


def mixed_interval(d: np.ndarray, level: float = 0.95, beside: float = 0.0) -> Interval:
    """Returns the interval of the mixed model with crossed random seeds and users, with guarded Hillis degrees of freedom.

    Args:
        d: table `(seeds, users)`.
        level: nominal coverage, in (0, 1).
        beside: variance of the mean that the table cannot show, because it moves all of it; known well.
    """
    n_seeds, n_users = d.shape
    seed, user, rest = mean_squares(d)
    size = n_seeds * n_users
    return _guarded(d, seed / size, max(user - rest, 0.0) / size + beside, n_seeds, size - 1, "mixed", level)


def splits_interval(estimates: np.ndarray, level: float = 0.95, beside: float = 0.0) -> Interval:
    """Returns the t interval over the estimates `(splits,)` of some splits; `beside` as of `mixed_interval`."""
    n = len(estimates)
    return _guarded(estimates[:, None], float(estimates.var(ddof=1)) / n, beside, n, _MANY_DF, "splits", level)


def _guarded(d: np.ndarray, few: float, many: float, n_few: int, most: float, method: str, level: float) -> Interval:
    """Returns the interval of the mean of a table whose variance is `few`, with n_few - 1 degrees of freedom, and `many`, with many."""
    se = math.sqrt(few + many)

    def df(alpha: float) -> float:
        """Returns the degrees of freedom at a two-sided error rate: the rarer the error, the higher the bound of `few`."""
        guard = min(GUARD * (alpha / 0.05) ** (2 / 3), 0.5)
        bound = few * (n_few - 1) / (2 * float(special.gammaincinv((n_few - 1) / 2, guard)))  # chi2.ppf, fast
        ratio = 1 + many / bound if bound > 0 else math.inf
        return float(min((n_few - 1) * ratio**2, most))

    found = _t_interval(d, se, df(1 - level), method, level)
    return replace(found, p=_p_value(abs(found.estimate) / se, df)) if se > 0 else found


def _p_value(t: float, df: Callable[[float], float]) -> float:
    """Returns the error rate at which the interval just reaches 0: where p = P(|T| > t) with the degrees of freedom of p itself."""
    low, high = 1e-30, 1.0
    if 2 * special.stdtr(df(high), -t) >= high:
        return 1.0
    for _ in range(60):  # P falls in the error rate, so there is one crossing; halved on the logarithm
        middle = math.sqrt(low * high)
        low, high = (middle, high) if 2 * special.stdtr(df(middle), -t) > middle else (low, middle)
    return float(high)


def bootstrap_interval(d: np.ndarray, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Returns the expanded percentile interval of the crossed bootstrap; the draws depend on the table's shape alone.

    Its p is the error rate at which the interval reaches 0. Where next to no resample lies beyond 0 that is more than the resamples
    can tell, and p is that of t with the bootstrap's standard error: corrections for many tests live on such small values.
    """
    n_seeds, n_users = d.shape
    estimate = float(d.mean())
    seeds, users = _draws(n_seeds, n_users, resamples)
    # One matrix product, then a row-wise dot: the mean of every resample, (resamples,).
    means = np.einsum("bu,bu->b", (seeds @ d.astype(np.float32)).astype(np.float64), users) / (n_seeds * n_users)
    widen = math.sqrt(n_seeds / (n_seeds - 1))
    tail = stats.norm.cdf(-widen * stats.t.ppf(0.5 + level / 2, n_seeds - 1))
    low, high = (float(bound) for bound in np.quantile(means, [tail, 1 - tail]))
    below = float((np.sum(means < 0) + 0.5 * np.sum(means == 0) + 0.5) / (resamples + 1))
    share = min(below, 1 - below)
    p = float(2 * stats.t.cdf(stats.norm.ppf(share) / widen, n_seeds - 1))
    se = float(means.std(ddof=1)) * widen
    if share < _SEEN / resamples and se > 0:
        p = min(p, float(2 * stats.t.sf(abs(estimate) / se, n_seeds - 1)))
    return Interval(estimate, low, high, se, n_seeds - 1, min(p, 1.0), n_seeds, n_users, "bootstrap", level)


@lru_cache(maxsize=4)
def _draws(n_seeds: int, n_users: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns how often each seed `(B, S)` and each user `(B, U)` is drawn, float32; equal for all tables of one shape."""
    rng = np.random.default_rng([n_seeds, n_users, resamples])
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=resamples)
    users = rng.multinomial(n_users, np.full(n_users, 1 / n_users), size=resamples)
    return seeds.astype(np.float32), users.astype(np.float32)


def _t_interval(d: np.ndarray, se: float, df: float, method: str, level: float) -> Interval:
    estimate = float(d.mean())
    if se == 0:  # two arms that are equal throughout, or differ by a constant
        return Interval(estimate, estimate, estimate, 0.0, df, float(estimate == 0), d.shape[0], d.shape[1], method, level)
    half = float(stats.t.ppf(0.5 + level / 2, df)) * se
    p = float(2 * stats.t.sf(abs(estimate) / se, df))
    return Interval(estimate, estimate - half, estimate + half, se, df, p, d.shape[0], d.shape[1], method, level)


def _checked(d: np.ndarray) -> np.ndarray:
    table = np.asarray(d, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] < 2:
        raise ValueError(f"a table of (seeds, users) needs at least 1 seed and 2 users, but got shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"a table of (seeds, users) must be finite, but {int((~np.isfinite(table)).sum())} values are not")
    return table
