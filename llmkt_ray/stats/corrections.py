"""Many tests at once: Holm for planned contrasts, Benjamini-Hochberg for grids, and equivalence by two one-sided tests."""

from collections.abc import Sequence

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from llmkt_ray.stats.interval import Interval


def holm(p: Sequence[float]) -> np.ndarray:
    """Returns Holm's adjusted p-values `(n,)`, which control the family-wise error rate; NaN stays NaN and does not count."""
    return _adjusted(p, "holm")


def benjamini_hochberg(p: Sequence[float]) -> np.ndarray:
    """Returns Benjamini and Hochberg's adjusted p-values `(n,)`, which control the false discovery rate; NaN as in `holm`."""
    return _adjusted(p, "fdr_bh")


def equivalence_p(interval: Interval, bound: float) -> float:
    """Returns the p-value of "the effect is as large as `bound` in either direction": two one-sided t tests (Schuirmann 1987).

    Small values say that the effect is smaller than the bound. With an interval over users it is at most .05 exactly where the 90 %
    interval lies within (-bound, bound). With more seeds it is more cautious: standard error and degrees of freedom are those of the
    95 % interval that is given.

    Args:
        interval: of the effect.
        bound: smallest effect of interest, positive, in the interval's unit.

    Raises:
        ValueError: the bound is not positive.
    """
    if bound <= 0:
        raise ValueError(f"bound must be positive, but got {bound}")
    if interval.se == 0:
        return float(abs(interval.estimate) >= bound)
    above = stats.t.sf((interval.estimate + bound) / interval.se, interval.df)
    below = stats.t.cdf((interval.estimate - bound) / interval.se, interval.df)
    return float(max(above, below))


def _adjusted(p: Sequence[float], method: str) -> np.ndarray:
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    known = np.isfinite(values)
    if known.any():
        adjusted[known] = multipletests(values[known], method=method)[1]
    return adjusted
