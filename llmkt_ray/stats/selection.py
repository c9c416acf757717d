"""Choosing without fooling oneself: safe ranges, the largest gain on seeds that did not choose it, and defaults left out."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import pandas as pd

from llmkt_ray.stats.interval import Interval

Name = TypeVar("Name", bound=Hashable)
Trial = TypeVar("Trial", bound=Hashable)


@dataclass(frozen=True)
class Choice(Generic[Name]):
    """What was chosen on validation, and from what.

    Attributes:
        best: the candidate with the best mean.
        means: candidate to mean validation value, of those that could be chosen.
        left_out: candidates that lack a trial which the others have.
    """

    best: Name
    means: Mapping[Name, float]
    left_out: tuple[Name, ...]


def choose(values: Mapping[Name, Mapping[Trial, float]], *, lower_is_better: bool = False) -> Choice[Name] | None:
    """Returns the candidate with the best mean on validation, all means being over the same trials.

    Those are the trials of the candidate that has most; who lacks one of them cannot be chosen: the mean of the seeds and splits that
    happened to finish says as much of them as of the candidate. Of several candidates with most, that one counts whose trials the
    largest number of candidates have.

    Args:
        values: candidate to trial, by its seed and split, to validation value; one that is not finite counts as missing.
        lower_is_better: whether less of the metric is better.

    Returns:
        None where no candidate has a value.
    """
    known = {name: {at: value for at, value in mine.items() if math.isfinite(value)} for name, mine in values.items()}
    trials = max((mine.keys() for mine in known.values()), key=lambda t: (len(t), sum(t <= m.keys() for m in known.values())), default=None)
    if not trials:
        return None
    means = {name: math.fsum(mine[at] for at in trials) / len(trials) for name, mine in known.items() if trials <= mine.keys()}
    best = min(means, key=means.__getitem__) if lower_is_better else max(means, key=means.__getitem__)
    return Choice(best, means, tuple(name for name in values if name not in means))


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


def safe_range(to_best: Mapping[float, Interval | None], best: float, tolerance: float = 0.01) -> tuple[float, ...]:
    """Returns the alphas next to each other around `best` that are shown to be within `tolerance` of it, relative; `best` included.

    An alpha counts where the lower bound of its paired relative difference to `best` is at least -tolerance.

    Args:
        to_best: alpha to the interval of its relative difference to `best`, for every alpha but `best` that was tried; None where there
            is none, because its trials failed: nothing is known of that alpha, and a range does not cross it.
        best: the alpha chosen on validation.
        tolerance: share of the best that may be lost.

    Raises:
        ValueError: `best` is among the alphas that are compared with it.
    """
    if best in to_best:
        raise ValueError(f"best ({best}) must not be compared with itself, but to_best holds {sorted(to_best)}")
    order = sorted([*to_best, best])
    safe = {alpha for alpha, interval in to_best.items() if interval is not None and interval.low >= -tolerance}
    low = high = order.index(best)
    while low > 0 and order[low - 1] in safe:
        low -= 1
    while high + 1 < len(order) and order[high + 1] in safe:
        high += 1
    return tuple(order[low : high + 1])


@dataclass(frozen=True)
class LeftOut:
    """How the default does where it was not chosen.

    Attributes:
        what: the dataset, or the model, that took no part in the choice.
        dataset, model: the context that is judged.
        chosen: the configuration that the others chose.
        own: the context's own validation choice.
        regret: test gain of `own` minus that of `chosen`, in units of (1 + gain of `own`): 0.01 means 1 % below; negative where the
            default does better on test.
    """

    what: str
    dataset: str
    model: str
    chosen: str
    own: str
    regret: float


@dataclass(frozen=True)
class Default:
    """A configuration recommended for all contexts, a context being a dataset and a model.

    Attributes:
        config: the one with the best mean relative validation gain over all contexts.
        valid, test: its mean relative gains over all contexts.
        contexts: how many contexts there are.
        shared: how many configurations ran in all of them, and so could be chosen.
        by_dataset, by_model: what it loses where a dataset, or a model, is left out of the choice; empty where there is one only.
    """

    config: str
    valid: float
    test: float
    contexts: int
    shared: int
    by_dataset: tuple[LeftOut, ...]
    by_model: tuple[LeftOut, ...]

    @property
    def is_better(self) -> bool:
        """Whether it is better on validation than no transfer: what is not is no default to recommend."""
        return self.valid > 0

    @property
    def worst(self) -> LeftOut | None:
        """The largest regret of all; None where nothing could be left out."""
        return max((*self.by_dataset, *self.by_model), key=lambda one: one.regret, default=None)


def recommended_default(rows: pd.DataFrame, sign: float = 1.0) -> Default | None:
    """Returns one default for all contexts, judged by leaving out a dataset, then a model.

    Only configurations that ran in every context can become the default; a context's own choice is among all that it ran.

    Args:
        rows: columns dataset, model, config, `valid` and `test`: relative gains, means over seeds.
        sign: -1 where less of the metric is better, so that a gain is a decrease.

    Returns:
        None where there are fewer than 2 contexts, or no configuration that all share.
    """
    whole = rows.dropna(subset=["valid", "test"])
    if whole.empty:
        return None
    valid, test = (whole.pivot_table(index="config", columns=["dataset", "model"], values=part) for part in ("valid", "test"))
    shared = valid.dropna()
    if shared.shape[1] < 2 or shared.empty:
        return None

    def judged(name: str) -> tuple[LeftOut, ...]:
        found = []
        groups = shared.columns.get_level_values(name)
        for what in groups.unique() if groups.nunique() > 1 else ():
            chosen = str(shared.loc[:, groups != what].mean(axis=1).idxmax())
            for context in shared.columns[groups == what]:
                own = str(valid[context].idxmax())
                # Gains are of one control: of its value v, that of a choice is v (1 + sign gain).
                regret = float((test.loc[own, context] - test.loc[chosen, context]) / (1 + sign * test.loc[own, context]))
                found.append(LeftOut(str(what), str(context[0]), str(context[1]), chosen, own, regret))
        return tuple(found)

    config = str(shared.mean(axis=1).idxmax())
    means = float(shared.loc[config].mean()), float(test.loc[config].mean())
    return Default(config, *means, shared.shape[1], len(shared), judged("dataset"), judged("model"))
