"""The phases of a trial: which epochs transfer, how strongly, where the switch lies, and which epochs may be selected.

METHOD.md, section 1: phase 1 is the first floor(switch * N) epochs. The phase arms of section 5:

    two_phase   transfer in phase 1, plain training in phase 2 (the paper)
    joint       transfer in every epoch, no switch
    pretrain    the transfer loss alone in phase 1 (alpha 1), plain training in phase 2
    reversed    plain training in phase 1, transfer in phase 2
"""

import math
from dataclasses import dataclass
from typing import Literal

from llmkt_ray.errors import TrainingError
from llmkt_ray.study import ScheduleConfig

ALPHA_SCHEDULES = ("constant", "linear", "cosine", "step")


@dataclass(frozen=True)
class PhasePlan:
    """What happens in which epoch; epochs count from 1.

    Attributes:
        schedule: the study's schedule.
        epochs: N, the number of epochs.
        one_phase: True: no switch, no hand-over and no transfer (arm `baseline`); the epochs that may be selected
            stay those of its two-phase twins, so that all arms choose among equally many.
    """

    schedule: ScheduleConfig
    epochs: int
    one_phase: bool = False

    def __post_init__(self) -> None:
        if self.schedule.kind != "joint" and not self.one_phase and not 0 < self.phase1_epochs < self.epochs:
            raise TrainingError(
                f"switch {self.schedule.switch:g} of {self.epochs} epochs leaves {self.phase1_epochs} epochs for phase 1, but both "
                f"phases of {self.schedule.kind!r} need at least 1; choose a switch in "
                f"[{self.schedule.smallest_switch(self.epochs):g}, 1) and at least 2 epochs, or kind 'joint'"
            )

    @property
    def phase1_epochs(self) -> int:
        """Number of epochs of phase 1: floor(switch * N); all of them where there is no switch (`joint`)."""
        return self.schedule.phase1_epochs(self.epochs)

    def phase(self, epoch: int) -> Literal[1, 2]:
        """Returns the phase of an epoch, in order of time; the one phase of a baseline is 1."""
        return 1 if self.one_phase or epoch <= self.phase1_epochs else 2

    def switches_before(self, epoch: int) -> bool:
        """Says whether the hand-over takes place right before this epoch."""
        return not self.one_phase and self.schedule.kind != "joint" and epoch == self.phase1_epochs + 1

    def transfers(self, epoch: int) -> bool:
        """Says whether the hook is on in this epoch."""
        return not self.one_phase and self.phase(epoch) == (2 if self.schedule.kind == "reversed" else 1)

    def selectable(self, epoch: int) -> bool:
        """Says whether the tested model may come from this epoch: the later phase, or any where there is but one."""
        return self.schedule.kind == "joint" or epoch > self.phase1_epochs

    def alpha(self, alpha: float, epoch: int) -> float:
        """Returns the weight of the transfer loss in an epoch, in [0, 1]; 0 where nothing is transferred.

        With t = share of the transferring epochs gone by, in [0, 1): constant: alpha; linear: alpha (1 - t);
        cosine: alpha (1 + cos(pi t)) / 2; step: alpha, from the middle on alpha / 2. `pretrain` is always 1.
        """
        if not self.transfers(epoch) or alpha == 0:
            return 0.0
        if self.schedule.kind == "pretrain":
            return 1.0
        first = self.phase1_epochs + 1 if self.schedule.kind == "reversed" else 1
        span = self.epochs - self.phase1_epochs if self.schedule.kind == "reversed" else self.phase1_epochs
        gone = (epoch - first) / span
        shapes = {
            "constant": 1.0,
            "linear": 1.0 - gone,
            "cosine": (1.0 + math.cos(math.pi * gone)) / 2,
            "step": 1.0 if gone < 0.5 else 0.5,
        }
        return alpha * shapes[self.schedule.alpha]
