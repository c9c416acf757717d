"""What a study of this size can see, and how many seeds would see more."""

import math
from functools import lru_cache

from statsmodels.stats.power import TTestPower

from llmkt_ray.stats.interval import Components

POWER, LEVEL = 0.8, 0.95
MOST_SEEDS = 200


def smallest_detectable(parts: Components, n_seeds: int, n_users: int, power: float = POWER, level: float = LEVEL) -> float:
    """Returns the smallest effect that a paired t test with seed-level degrees of freedom finds with this power.

    Args:
        parts: variance components of the paired values; the effect has their unit.
        n_seeds: number of seeds; with 1 there are no degrees of freedom and the result is infinite.
        n_users: number of evaluated users.
        power: probability of finding it, in (0, 1).
        level: coverage of the interval that must exclude 0.
    """
    if n_seeds < 2:
        return math.inf
    # The t test's own standard deviation would be sd / sqrt(seeds) = sqrt(variance of the mean).
    return _standardised(n_seeds, power, level) * math.sqrt(n_seeds * parts.variance(n_seeds, n_users))


def seeds_needed(parts: Components, n_users: int, effect: float, power: float = POWER, level: float = LEVEL) -> int | None:
    """Returns the smallest number of seeds, at least 2, that finds `effect`; None where even `MOST_SEEDS` would not.

    None means that the users are too few, or the effect too small, for more seeds to help.

    Raises:
        ValueError: the effect is not positive.
    """
    if effect <= 0:
        raise ValueError(f"effect must be positive, but got {effect}")
    low, high = 2, MOST_SEEDS
    if smallest_detectable(parts, high, n_users, power, level) > effect:
        return None
    while low < high:
        middle = (low + high) // 2
        if smallest_detectable(parts, middle, n_users, power, level) <= effect:
            high = middle
        else:
            low = middle + 1
    return low


@lru_cache(maxsize=4096)
def _standardised(n_seeds: int, power: float, level: float) -> float:
    """Returns the effect in standard deviations that a one-sample t test of `n_seeds` values finds."""
    return float(TTestPower().solve_power(effect_size=None, nobs=n_seeds, alpha=1 - level, power=power, alternative="two-sided"))
