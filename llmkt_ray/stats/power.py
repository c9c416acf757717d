"""What a study of this size can see, and how many seeds or splits would see more."""

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import lru_cache

from statsmodels.stats.power import TTestPower

from llmkt_ray.stats.interval import MIXED_FROM, SPLITS_FROM, Components

POWER, LEVEL = 0.8, 0.95
MOST = 200
"""Seeds or splits beyond which nobody goes."""


def smallest_detectable(parts: Components, n_seeds: int, n_users: int, power: float = POWER, level: float = LEVEL) -> float:
    """Returns the smallest effect that a paired t test with seed-level degrees of freedom finds with this power.

    Args:
        parts: variance components of the paired values; the effect has their unit.
        n_seeds: number of seeds; with 1 there are no degrees of freedom and the result is infinite.
        n_users: number of evaluated users.
        power: probability of finding it, in (0, 1).
        level: coverage of the interval that must exclude 0.
    """
    return detectable_by(math.sqrt(parts.variance(n_seeds, n_users)), n_seeds, power, level)


def detectable_by(se: float, n: int, power: float = POWER, level: float = LEVEL) -> float:
    """Returns the smallest effect that a t test of `n` independent estimates, seeds or splits, finds with this power.

    Args:
        se: standard error of their mean; the effect has its unit.
        n: number of estimates; with 1 there are no degrees of freedom and the result is infinite.
        power: probability of finding it, in (0, 1).
        level: coverage of the interval that must exclude 0.
    """
    # The t test's own standard deviation is se * sqrt(n).
    return _standardised(n, power, level) * math.sqrt(n) * se if n >= 2 else math.inf


def seeds_needed(parts: Components, n_users: int, effect: float, power: float = POWER, level: float = LEVEL) -> int | None:
    """Returns the smallest number of seeds that finds `effect`, at least `MIXED_FROM`; None where even `MOST` would not.

    With fewer than `MIXED_FROM` nothing is claimed of other seeds. None means that the users are too few, or the effect too small,
    for more seeds to help.

    Raises:
        ValueError: the effect is not positive.
    """
    return _fewest(lambda n: smallest_detectable(parts, n, n_users, power, level), effect, MIXED_FROM)


def seeds_needed_over_splits(
    crossed: Components, n_splits: int, effect: float, shared: float, power: float = POWER, level: float = LEVEL
) -> int | None:
    """Returns the smallest number of seeds on `n_splits` splits that finds `effect`; otherwise as `seeds_needed`.

    Raises:
        ValueError: the effect is not positive.
    """
    return _fewest(lambda n: detectable_over_seeds(crossed, n, n_splits, shared, power, level), effect, MIXED_FROM)


def detectable_over_splits(
    between: float, n_splits: int, crossed: Components | None, n_seeds: int, shared: float, power: float = POWER, level: float = LEVEL
) -> float:
    """Returns the smallest effect that the interval over splits finds with this power: the wider of its two kinds decides.

    Args:
        between: standard deviation of the splits' estimates; the effect has its unit.
        n_splits: number of splits.
        crossed: variance components of (seeds, splits), splits in the place of users; None where no mixed model of both is made. What a
            seed does in every split does not shrink with the number of splits.
        n_seeds: number of seeds, the same in all splits.
        shared: variance of the mean that is due to the users whom all splits share: no number of splits lessens it.
        power: probability of finding it, in (0, 1).
        level: coverage of the interval that must exclude 0.
    """
    alone = detectable_by(math.sqrt(between**2 / n_splits + shared), n_splits, power, level)
    return max(alone, detectable_over_seeds(crossed, n_seeds, n_splits, shared, power, level)) if crossed else alone


def detectable_over_seeds(
    crossed: Components, n_seeds: int, n_splits: int, shared: float, power: float = POWER, level: float = LEVEL
) -> float:
    """Returns the smallest effect that the mixed model of seeds and splits finds; arguments as of `detectable_over_splits`."""
    return detectable_by(math.sqrt(crossed.variance(n_seeds, n_splits) + shared), n_seeds, power, level)


def splits_needed(
    between: float, effect: float, crossed: Components | None, n_seeds: int, shared: float, power: float = POWER, level: float = LEVEL
) -> int | None:
    """Returns the smallest number of splits that finds `effect`, at least `SPLITS_FROM`; None where even `MOST` would not.

    Arguments as of `detectable_over_splits`; `effect` in the unit of `between`.

    Raises:
        ValueError: the effect is not positive.
    """
    return _fewest(lambda n: detectable_over_splits(between, n, crossed, n_seeds, shared, power, level), effect, SPLITS_FROM)


def _fewest(detectable: Callable[[int], float], effect: float, fewest: int) -> int | None:
    if effect <= 0:
        raise ValueError(f"effect must be positive, but got {effect}")
    if detectable(MOST) > effect:
        return None
    return fewest + bisect_left(range(fewest, MOST), True, key=lambda n: detectable(n) <= effect)


@lru_cache(maxsize=4096)
def _standardised(n: int, power: float, level: float) -> float:
    """Returns the effect in standard deviations that a one-sample t test of `n` values finds."""
    return float(TTestPower().solve_power(effect_size=None, nobs=n, alpha=1 - level, power=power, alternative="two-sided"))
