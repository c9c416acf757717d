"""What a search maximises: a stated statistic over the seeds of a suggestion, of validation alone."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from optuna.trial import TrialState

from llmkt_ray.study import SearchConfig, StudyConfig

OBJECTIVES: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray, float], float]]] = {
    "mean": ("maximize", lambda values, epochs, k: float(values.mean())),
    "worst": ("maximize", lambda values, epochs, k: float(values.min())),
    "mean_minus_sd": ("maximize", lambda values, epochs, k: float(values.mean() - k * values.std(ddof=1)) if len(values) > 1 else math.nan),
    "epochs": ("minimize", lambda values, epochs, k: float(epochs.mean())),
}
"""Name to direction and function of the seeds' values `(seeds,)`, their best epochs `(seeds,)` and `risk`. `epochs`, the mean
number of epochs to the best one, is the cost: unlike seconds it is the same on every machine."""


def directions(search: SearchConfig) -> list[str]:
    """Returns "maximize" or "minimize" for each objective."""
    return [OBJECTIVES[name][0] for name in search.objectives]


def outcome(study: StudyConfig, rows: pd.DataFrame) -> tuple[TrialState, list[float]]:
    """Returns the state of a suggestion and its objectives, from the rows of its seeds (NaN rows where one is missing).

    A seed that failed, or a value that is not a number, makes it FAIL; a seed that was stopped early makes it PRUNED.
    """
    status = set(rows["status"])
    if status == {"done"}:
        values = rows[f"valid_{study.evaluation.select_on}"].to_numpy(dtype=np.float64)
        epochs = rows["best_epoch"].to_numpy(dtype=np.float64)
        found = [OBJECTIVES[name][1](values, epochs, study.search.risk) for name in study.search.objectives]
        return (TrialState.COMPLETE, found) if np.isfinite(found).all() and np.isfinite(values).all() else (TrialState.FAIL, [])
    return (TrialState.PRUNED if status <= {"done", "pruned"} else TrialState.FAIL, [])
