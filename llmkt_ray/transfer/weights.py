"""The weights manager: which parameters train in which phase, and what is handed over at the switch.

METHOD.md, trap 12: in the published code a logging step silently reloads the best phase-1 checkpoint. Here the
hand-over is a setting: `last` goes on from the last epoch of phase 1; `best_valid` restores weights, optimizer and
counters of phase 1's best validation epoch together; either way the optimizer is then kept or reset.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from llmkt_ray.errors import TrainingError
from llmkt_ray.transfer.phases import PhasePlan
from llmkt_ray.transfer.state import ModelState

_PARAMETRIZED = re.compile(r"\.parametrizations\.(\w+)\..+$")


class WeightsManager:
    """Owns the optimizer and decides what it may change.

    Args:
        model: the model in training.
        plan: the phases.
        make_optimizer: makes an optimizer from a list of parameters; called at the start and, with
            `optimizer: reset`, at the switch.
        extra: parameters of the student projection, trained in transferring epochs only.
        shared: other trials go on from this one's phase 1, so its best epoch is remembered whatever the own hand-over.

    Raises:
        TrainingError: a freezing pattern of the schedule matches no parameter, or nothing is left to train.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: PhasePlan,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        *,
        extra: Sequence[nn.Parameter] = (),
        shared: bool = False,
    ) -> None:
        self._model = model
        self._plan = plan
        self._make = make_optimizer
        self._extra = list(extra)
        self._shared = shared
        self._trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        freeze = {} if plan.one_phase else plan.schedule.freeze
        self._frozen = {phase: frozen_parameters(self._trainable, phase, patterns) for phase, patterns in freeze.items()}
        self._state = ModelState(model)
        self._best: dict[str, Any] | None = None
        self._best_value = float("-inf")
        self._overlooked = False
        self.optimizer = self._new_optimizer()
        self.handed_over = 0
        """The phase-1 epoch whose weights phase 2 started from; 0 before the switch."""

    def begin_epoch(self, epoch: int) -> None:
        """Does what is due before an epoch (from 1): the hand-over, the optimizer's reset, freezing.

        Raises:
            TrainingError: hand-over `best_valid`, but phase 1 was never evaluated.
        """
        if self._plan.switches_before(epoch):
            self._hand_over(epoch)
        frozen = self._frozen.get("phase1" if self._plan.phase(epoch) == 1 else "phase2", set())
        for name, parameter in self._model.named_parameters():
            if name in self._trainable:
                parameter.requires_grad_(name not in frozen)
                if name in frozen:
                    # Without this a last gradient from before the switch would go on moving it.
                    parameter.grad = None
        if not self._plan.transfers(epoch):
            for parameter in self._extra:
                parameter.grad = None

    def observe(self, epoch: int, value: float) -> None:
        """Takes note of a validation value (higher is better); remembers phase 1's best epoch if it will be needed."""
        wanted = self._shared or self._wants_best
        self._overlooked |= not wanted and epoch <= self._plan.phase1_epochs
        if wanted and epoch <= self._plan.phase1_epochs and value > self._best_value:
            self._best_value = value
            self._best = {
                "epoch": epoch,
                "model": self._state.copy(),
                "extra": [parameter.detach().clone() for parameter in self._extra],
                "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            }

    @property
    def knows_best(self) -> bool:
        """Whether every evaluated epoch of phase 1 so far was compared: not in a trial that shared its phase 1 with none when it began."""
        return not self._overlooked

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resume needs besides the model's own state: tensors, numbers and plain containers."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "best": self._best,
            "best_value": self._best_value,
            "overlooked": self._overlooked,
            "handed_over": self.handed_over,
            "extra": [parameter.detach().clone() for parameter in self._extra],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; the model's own state is restored by the caller."""
        self._load_optimizer(state["optimizer"])
        self._best = state["best"]
        self._best_value = state["best_value"]
        self._overlooked = state["overlooked"]
        self.handed_over = state["handed_over"]
        self._load_extra(state["extra"])

    def fork(self, state: Mapping[str, Any]) -> None:
        """Goes on from the end of a phase 1 that another trial computed, given that trial's `state_dict`.

        Where phase 1 transferred nothing (`reversed`), the own projection stays as it was made: the other trial may have none.
        """
        self._load_optimizer(self._with_own_extra(state["optimizer"]))
        learnt = self._extra and self._plan.transfers(self._plan.phase1_epochs)
        if learnt:
            self._load_extra(state["extra"])
        if self._wants_best and state["best"] is not None:
            self._best = {**state["best"], "optimizer": self._with_own_extra(state["best"]["optimizer"])}
            self._best_value = state["best_value"]
            if not learnt:
                self._best["extra"] = [parameter.detach().clone() for parameter in self._extra]

    @property
    def _wants_best(self) -> bool:
        return self._plan.schedule.handover == "best_valid" and self._plan.schedule.kind != "joint" and not self._plan.one_phase

    def _with_own_extra(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns an optimizer's state for the model's parameters and the own projection's, which may have no moments yet."""
        (group,) = state["param_groups"]
        return {"state": state["state"], "param_groups": [{**group, "params": list(range(len(self._trainable) + len(self._extra)))}]}

    def _hand_over(self, epoch: int) -> None:
        self.handed_over = epoch - 1
        if self._plan.schedule.handover == "best_valid":
            if self._best is None:
                raise TrainingError(
                    f"handover 'best_valid' needs a validation in phase 1 (epochs 1 to {epoch - 1}), but there was none; "
                    f"set evaluate_every to at most {epoch - 1}, or handover to 'last'"
                )
            self._state.load(self._best["model"])
            self._load_extra(self._best["extra"])
            self._load_optimizer(self._best["optimizer"])
            self.handed_over = self._best["epoch"]
            self._best = None
        if self._plan.schedule.optimizer == "reset":
            self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> Optimizer:
        model = [parameter for name, parameter in self._model.named_parameters() if name in self._trainable]
        return self._make([*model, *self._extra])

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        # A copy: torch takes the moments over as they are, and stepping would change the caller's state.
        self.optimizer.load_state_dict(copy.deepcopy(state))

    def _load_extra(self, values: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._extra, values, strict=True):
                parameter.copy_(value)


def frozen_parameters(names: Iterable[str], phase: str, patterns: Sequence[str]) -> set[str]:
    """Returns the parameters that patterns keep fixed in a phase.

    What stands in for a weight (`input_concat` joins profiles to the user table by a parametrization) goes by that weight's name, so
    that a pattern keeps the same thing fixed in all arms.

    Args:
        names: of the parameters that are trained.
        phase: "phase1" or "phase2", for the message.
        patterns: of names, as in a shell: `item_*`.

    Raises:
        TrainingError: a pattern matches no parameter, or nothing is left to train.
    """
    known = sorted(names)
    plain = {name: _PARAMETRIZED.sub(r".\1", name) for name in known}
    listed = ", ".join(dict.fromkeys(plain.values()))
    found: set[str] = set()
    for pattern in patterns:
        hit = {name for name in known if fnmatchcase(name, pattern) or fnmatchcase(plain[name], pattern)}
        if not hit:
            raise TrainingError(f"freezing pattern {pattern!r} of {phase} matches no parameter; parameters: {listed}")
        found |= hit
    if len(found) == len(known):
        raise TrainingError(f"freezing {list(patterns)} in {phase} leaves nothing to train; parameters: {listed}")
    return found
