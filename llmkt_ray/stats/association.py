"""Whether two values of users go together: Spearman's rank correlation with its interval."""

import math

import numpy as np
from scipy import stats

from llmkt_ray.stats.interval import Interval

FEWEST = 10
"""Users below which no correlation is computed."""


def spearman(x: np.ndarray, y: np.ndarray, level: float = 0.95) -> Interval | None:
    """Returns Spearman's rho of two arrays `(users,)`, in [-1, 1], with its interval; None where either is constant or users are few.

    The interval is Fisher's z with the variance of Bonett and Wright (2000), Psychometrika 65, 23-28: (1 + rho^2 / 2) / (n - 3).
    Users are the units; the values' seeds are taken as given.
    """
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    n = len(x)
    if n < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found = stats.spearmanr(x, y)
    rho = float(found.statistic)
    se = math.sqrt((1 + rho**2 / 2) / (n - 3))
    half = float(stats.norm.ppf(0.5 + level / 2)) * se
    centre = math.atanh(min(max(rho, -0.999999), 0.999999))
    return Interval(rho, math.tanh(centre - half), math.tanh(centre + half), se, n - 3, float(found.pvalue), 1, n, "users", level)
