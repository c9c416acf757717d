"""Shares of the variance: what each factor explains of the values of trials, and what two factors explain only together.

Analysis of variance by statsmodels, type II sums of squares: a factor's share is what it adds to all others, which is also right
where a study is not balanced (one LLM with two prompts, another with one). Shares are omega squared, which corrects for the
levels that a factor has (Hays 1963; Olejnik and Algina 2003, Psychological Methods 8, 434-447), cut at 0.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from llmkt_ray.stats.corrections import benjamini_hochberg

REST = "rest"
MOST_ROWS = 2_000
"""Rows that are used at the most, a seeded sample."""
MOST_LEVELS = 40
"""Levels of a factor at the most; one with more is left out."""


@dataclass(frozen=True)
class Share:
    """What a factor, or two together, explain.

    Attributes:
        name: the factor, or "a x b".
        share: omega squared, in [0, 1].
        p: of the F test that it explains nothing; NaN for what is left over.
        levels: of the factor, of the combinations for two.
    """

    name: str
    share: float
    p: float
    levels: int


def variance_shares(rows: pd.DataFrame, value: str) -> tuple[Share, ...]:
    """Returns each factor's share of the variance, the largest first, then `REST`; empty where nothing can be told.

    Args:
        rows: one a trial; every column but `value` is a factor, taken as categories; NaN rows are left out.
        value: the column of the metric.
    """
    whole, factors = _prepared(rows, value)
    if not factors or len(whole) < sum(whole[f].nunique() - 1 for f in factors) + 2 or whole[value].nunique() < 2:
        return ()
    table = _anova(whole, value, " + ".join(f"C(Q('{name}'))" for name in factors))
    omegas = {name: _omega(table, f"C(Q('{name}'))", whole[value]) for name in factors}
    found = [Share(name, omegas[name], float(table.loc[f"C(Q('{name}'))", "PR(>F)"]), whole[name].nunique()) for name in factors]
    left = max(0.0, 1.0 - sum(omegas.values()))
    return (*sorted(found, key=lambda share: -share.share), Share(REST, left, float("nan"), 0))


def interactions(rows: pd.DataFrame, value: str, leave_out: Sequence[str] = ()) -> tuple[Share, ...]:
    """Returns what pairs of factors explain beyond both of them and all the others, the largest first; p by Benjamini-Hochberg.

    Pairs of which not every combination ran, or that leave no degrees of freedom, are left out.

    Args:
        rows: as in `variance_shares`.
        value: the column of the metric.
        leave_out: factors that are adjusted for but not paired, for example the seed.
    """
    whole, factors = _prepared(rows, value)
    found = []
    for a, b in combinations([name for name in factors if name not in leave_out], 2):
        combined = whole.groupby([a, b]).ngroups
        if combined < whole[a].nunique() * whole[b].nunique():
            continue
        parameters = combined + sum(whole[name].nunique() - 1 for name in factors if name not in (a, b))
        if len(whole) < parameters + 2 or whole[value].nunique() < 2:
            continue
        rest = "".join(f" + C(Q('{name}'))" for name in factors if name not in (a, b))
        table = _anova(whole, value, f"C(Q('{a}')) * C(Q('{b}')){rest}")
        name = f"C(Q('{a}')):C(Q('{b}'))"
        found.append(Share(f"{a} \u00d7 {b}", _omega(table, name, whole[value]), float(table.loc[name, "PR(>F)"]), combined))
    adjusted = benjamini_hochberg([share.p for share in found])
    corrected = [Share(s.name, s.share, float(p), s.levels) for s, p in zip(found, adjusted, strict=True)]
    return tuple(sorted(corrected, key=lambda share: -share.share))


def _prepared(rows: pd.DataFrame, value: str) -> tuple[pd.DataFrame, list[str]]:
    whole = rows.dropna(subset=[value])
    if len(whole) > MOST_ROWS:
        whole = whole.iloc[np.sort(np.random.default_rng(0).choice(len(whole), MOST_ROWS, replace=False))]
    factors = [name for name in whole.columns if name != value and 1 < whole[name].nunique() <= MOST_LEVELS]
    # A factor whose level follows from another's (one prompt for each LLM) cannot be told from it: its variance is the other's.
    kept = [name for name in factors if not any(_determines(whole, other, name) for other in factors if other != name)]
    return whole.assign(**{name: whole[name].astype(str) for name in kept})[[*kept, value]], kept


def _determines(rows: pd.DataFrame, one: str, other: str) -> bool:
    """Says whether each level of `one` has a single level of `other`; of two that name each other, the one that comes first counts."""
    if rows.groupby(one)[other].nunique().max() > 1:
        return False
    mutual = rows.groupby(other)[one].nunique().max() == 1
    columns = list(rows.columns)
    return not mutual or columns.index(one) < columns.index(other)


def _anova(rows: pd.DataFrame, value: str, right: str) -> pd.DataFrame:
    with warnings.catch_warnings():
        # A factor that another determines (a prompt that only one LLM has) has 0 degrees of freedom of its own: its share is 0.
        warnings.simplefilter("ignore")
        table: pd.DataFrame = anova_lm(smf.ols(f"Q('{value}') ~ {right}", rows).fit(), typ=2)
    return table


def _omega(table: pd.DataFrame, name: str, values: pd.Series) -> float:
    noise = float(table.loc["Residual", "sum_sq"] / table.loc["Residual", "df"])
    total = float(((values - values.mean()) ** 2).sum())
    share = (float(table.loc[name, "sum_sq"]) - float(table.loc[name, "df"]) * noise) / (total + noise)
    return float(min(max(share, 0.0), 1.0)) if np.isfinite(share) else 0.0
