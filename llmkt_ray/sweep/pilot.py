"""A pilot: the most telling trials first, until a budget of trials, hours or money is spent.

What is told first: each model's claim (treated at the claim's alpha, with its twins) at the first level of every other factor, seed by
seed; then the claim at the other levels; then the other alphas. So a pilot of any size is a whole small study, not a corner of a large one.
"""

import threading
import time
from collections.abc import Sequence

from llmkt_ray.study import BudgetConfig, ResourcesConfig, TransferConfig
from llmkt_ray.training.spec import TrialSpec

ARM_ORDER = ("treated", "alpha0", "shuffled", "template", "baseline")
"""Arms in the order in which they tell most: with the first three a gain of the profile can be told from one of the schedule."""
_OF_THE_TARGET = ("llm", "encoder", "reduction", "dims")


def telling_first(specs: Sequence[TrialSpec], transfer: TransferConfig) -> tuple[TrialSpec, ...]:
    """Returns the trials of a study, the most telling first; equal inputs give the same order.

    Args:
        specs: the trials in the order of the study file.
        transfer: for the claim's alpha.
    """
    first: dict[tuple[str, str], TrialSpec] = {}
    for spec in specs:
        if spec.arm == "treated":
            first.setdefault((spec.dataset, spec.model), spec)
    models = list(dict.fromkeys((spec.dataset, spec.model) for spec in specs))

    def rank(spec: TrialSpec) -> tuple[int, int, int, int]:
        at = (spec.dataset, spec.model)
        if spec.arm == "reference":
            tier = 1
        elif spec.arm == "treated" and spec.alpha != transfer.levels(spec.schedule)[1]:
            tier = 3
        else:
            tier = 0 if at not in first or _same_cell(spec, first[at]) else 2
        arm = ARM_ORDER.index(spec.arm) if spec.arm in ARM_ORDER else len(ARM_ORDER)
        return (tier, spec.seed_index, models.index(at), arm)

    return tuple(sorted(specs, key=rank))


def _same_cell(spec: TrialSpec, treated: TrialSpec) -> bool:
    """Says whether a trial belongs to the cell of a treated one, as far as it depends on the cell's factors at all."""
    if spec.split_key != treated.split_key:
        return False
    if spec.layer is None:
        return True
    own_target = spec.targets_key != treated.targets_key
    factors = [name for name in spec.factors if name in treated.factors and not (own_target and name in _OF_THE_TARGET)]
    other_target = own_target and spec.arm not in ("template", "item_mean", "leaked")
    return (
        not other_target
        and (spec.layer, spec.loss, spec.schedule) == (treated.layer, treated.loss, treated.schedule)
        and all(spec.factors[name] == treated.factors[name] for name in factors)
    )


class Meter:
    """What a run has spent, and whether more may be spent; told of every trial that starts and ends.

    Args:
        budget: what may be spent.
        resources: what a trial takes, and the prices.
        spent_s: trial time that earlier runs of the study have spent, in seconds.
        extra: money that was spent on something else than trials, the profiles.
    """

    def __init__(self, budget: BudgetConfig, resources: ResourcesConfig, spent_s: float = 0.0, extra: float = 0.0) -> None:
        self._budget, self._lock, self._begun = budget, threading.Lock(), time.monotonic()
        self._rate_s = (resources.trial.cpus * resources.cpu_hour + resources.trial.gpus * resources.gpu_hour) / 3600
        self._money = extra + spent_s * self._rate_s
        self._running: dict[str, float] = {}
        self.left_out = 0

    def started(self, key: str) -> None:
        """Notes that a trial runs from now on."""
        with self._lock:
            self._running[key] = time.monotonic()

    def ended(self, key: str) -> None:
        """Notes that a trial has ended."""
        with self._lock:
            begun = self._running.pop(key, None)
            self._money += 0.0 if begun is None else (time.monotonic() - begun) * self._rate_s

    def pay(self, money: float) -> None:
        """Notes money that was spent on something else than trials."""
        with self._lock:
            self._money += money

    def money(self) -> float:
        """Returns the money spent so far, on trials that run too."""
        with self._lock:
            now = time.monotonic()
            return self._money + sum(now - begun for begun in self._running.values()) * self._rate_s

    def spent(self) -> str | None:
        """Returns what is used up, in words, or None while another trial may start."""
        if self._budget.hours is not None and time.monotonic() - self._begun >= self._budget.hours * 3600:
            return f"the budget of {self._budget.hours:g} hours"
        if self._budget.money is not None and self.money() >= self._budget.money:
            return f"the budget of {self._budget.money:g} (spent {self.money():.2f})"
        return None
