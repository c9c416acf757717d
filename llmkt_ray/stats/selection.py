"""Choosing without fooling oneself: safe ranges, the largest gain on seeds that did not choose it, and defaults left out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmkt_ray.stats.contrast import contrast


@dataclass(frozen=True)
class Largest:
    """The largest gain of a search, and what is left of it.

    Attributes:
        config: the configuration chosen on the `choosing` seeds' validation values.
        searched: how many configurations it was chosen from.
        apparent: its relative test gain on the seeds that chose it.
        honest: its relative test gain on the other seeds; None where there are none.
        choosing, judging: the two sets of seeds.
    """

    config: str
    searched: int
    apparent: float
    honest: float | None
    choosing: tuple[int, ...]
    judging: tuple[int, ...]


def largest_gain(rows: pd.DataFrame) -> Largest | None:
    """Returns the configuration with the largest validation gain on every second seed, and its test gain there and on the others.

    Args:
        rows: one a (config, seed) with columns config, seed, and relative gains over the control, `valid` and `test`.
    """
    whole = rows.dropna(subset=["valid", "test"])
    if whole.empty:
        return None
    seeds = sorted({int(s) for s in whole["seed"]})
    choosing = tuple(seeds[::2])
    judging = tuple(seeds[1::2])
    mine = whole[whole["seed"].isin(choosing)]
    means = mine.groupby("config")["valid"].mean()
    config = str(means.idxmax())
    others = whole[(whole["config"] == config) & whole["seed"].isin(judging)]["test"]
    apparent = float(mine.loc[mine["config"] == config, "test"].mean())
    honest = float(others.mean()) if len(others) else None
    return Largest(config, int(whole["config"].nunique()), apparent, honest, choosing, judging)


def safe_range(tables: Mapping[float, np.ndarray], best: float, tolerance: float = 0.01) -> tuple[float, ...]:
    """Returns the alphas next to each other around `best` that are shown to be within `tolerance` of it, relative; `best` included.

    An alpha counts where the lower bound of its paired relative difference to `best` is at least -tolerance.

    Args:
        tables: alpha to test values `(seeds, users)`, rows and columns in the same order.
        best: the alpha chosen on validation.
        tolerance: share of the best that may be lost.

    Raises:
        ValueError: `best` has no table.
    """
    if best not in tables:
        raise ValueError(f"best must be one of the alphas {sorted(tables)}, but got {best}")
    order = sorted(tables)
    at = order.index(best)

    def safe(alpha: float) -> bool:
        relative = contrast(tables[alpha], tables[best]).relative
        return relative is not None and relative.low >= -tolerance

    low = high = at
    while low > 0 and safe(order[low - 1]):
        low -= 1
    while high + 1 < len(order) and safe(order[high + 1]):
        high += 1
    return tuple(order[low : high + 1])


@dataclass(frozen=True)
class Default:
    """A configuration recommended for all contexts.

    Attributes:
        config: the one with the best mean rank-free score over all contexts: the mean relative validation gain.
        regret: context to test regret of the default chosen WITHOUT that context, relative to the context's own choice.
        left_out: context to the default that the others choose.
    """

    config: str
    regret: Mapping[str, float]
    left_out: Mapping[str, str]


def recommended_default(rows: pd.DataFrame) -> Default | None:
    """Returns one default for all contexts (datasets, or models), judged on each by leaving it out.

    Only configurations that ran in every context take part. The regret of a context is the test gain of its own validation
    choice minus that of the default chosen on the others, in units of (1 + gain): 0.01 means 1 % below its own choice.

    Args:
        rows: columns context, config, `valid` and `test`: relative gains, means over seeds.

    Returns:
        None where fewer than 2 contexts share a configuration.
    """
    valid = rows.pivot_table(index="config", columns="context", values="valid").dropna()
    test = rows.pivot_table(index="config", columns="context", values="test").reindex(valid.index)
    if valid.shape[1] < 2 or valid.empty:
        return None
    regret, left_out = {}, {}
    for context in valid.columns:
        chosen = str(valid.drop(columns=context).mean(axis=1).idxmax())
        own = str(valid[context].idxmax())
        left_out[str(context)] = chosen
        regret[str(context)] = float((test.loc[own, context] - test.loc[chosen, context]) / (1 + test.loc[own, context]))
    return Default(str(valid.mean(axis=1).idxmax()), regret, left_out)
