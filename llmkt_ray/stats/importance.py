"""Which factor moves the metric: fANOVA and PED-ANOVA by Optuna, with the seed as one factor among the others.

The rows are trials, one a (configuration, seed), so that the importance of the seed is the noise floor: a factor below it does
nothing that repeating the study would not do. fANOVA (Hutter, Hoos and Leyton-Brown 2014) speaks of the whole range, PED-ANOVA
(Watanabe, Bansal and Hutter 2023) of what sets the best rows apart.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

SEED = "seed"
MOST_ROWS = 400
"""Rows that are used at the most, a seeded sample: the forest's time grows faster than its gain."""

EVALUATORS: dict[str, Callable[[], Any]] = {
    "fanova": lambda: FanovaImportanceEvaluator(n_trees=16, max_depth=64, seed=0),
    "ped_anova": lambda: PedAnovaImportanceEvaluator(),
}


def importance(rows: pd.DataFrame, value: str, method: str = "fanova") -> dict[str, float]:
    """Returns factor to share of the importance, in [0, 1], summing to 1, the largest first; empty where nothing varies.

    Args:
        rows: one a trial; every column but `value` is a factor, numbers as a range, all else as categories; NaN rows are left out.
        value: the column of the metric, higher is better.
        method: "fanova" or "ped_anova".

    Raises:
        ValueError: the method is unknown, or the rows have no column `seed`.
    """
    if method not in EVALUATORS:
        raise ValueError(f"method must be one of {', '.join(EVALUATORS)}, but got {method!r}")
    if SEED not in rows:
        raise ValueError(f"rows need a column {SEED!r}: without it there is no noise floor")
    whole = rows.dropna(subset=[value])
    factors = [name for name in whole.columns if name != value and whole[name].nunique(dropna=False) > 1]
    if len(whole) < 4 or not factors or whole[value].nunique() < 2:
        return {}
    if len(whole) > MOST_ROWS:
        whole = whole.iloc[np.sort(np.random.default_rng(0).choice(len(whole), MOST_ROWS, replace=False))]
    study = _study(whole, factors, value)
    shares = optuna.importance.get_param_importances(study, evaluator=EVALUATORS[method](), params=factors, normalize=True)
    return {name: float(share) for name, share in sorted(shares.items(), key=lambda pair: -pair[1])}


def _study(rows: pd.DataFrame, factors: list[str], value: str) -> optuna.Study:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    optuna.logging.set_verbosity(before)
    spaces = {name: _distribution(rows[name], name) for name in factors}
    as_category = {name for name, space in spaces.items() if isinstance(space, optuna.distributions.CategoricalDistribution)}
    for row in rows.to_dict("records"):
        params = {name: str(row[name]) if name in as_category else float(row[name]) for name in factors}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=float(row[value])))
    return study


def _distribution(column: pd.Series, name: str) -> optuna.distributions.BaseDistribution:
    """Numbers with an order are a range; a seed has none, nor has anything that is not a number."""
    if name != SEED and pd.api.types.is_float_dtype(column) and column.notna().all():
        return optuna.distributions.FloatDistribution(float(column.min()), float(column.max()))
    return optuna.distributions.CategoricalDistribution(sorted({str(v) for v in column}))
