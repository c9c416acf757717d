"""The epochs of a trial: train, validate, select, hand over, checkpoint.

The loop never sees a test row: it is given the train batches and the validation task, and leaves the selected weights in
the model.

Selection, the same in all arms: after every `evaluate_every`-th epoch, after the last epoch of phase 1 and after the last of
all, validation is measured; the tested model is the best of these among the epochs after the switch, the first one if
several are equal. A baseline has no switch, but chooses among the very same epochs as its two-phase twins, so that no arm has
more tries than another.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from llmkt_ray.errors import TrainingError
from llmkt_ray.seeds import derive_seed
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.models import BuiltModel
from llmkt_ray.training.checkpoint import CheckpointFile
from llmkt_ray.training.evaluate import Ranking
from llmkt_ray.training.isolation import seed_globals
from llmkt_ray.training.metrics import LOWER_IS_BETTER
from llmkt_ray.training.rungs import best_by, is_behind
from llmkt_ray.training.spec import TrialSpec
from llmkt_ray.transfer.manager import TransferManager
from llmkt_ray.transfer.phases import PhasePlan
from llmkt_ray.transfer.state import ModelState
from llmkt_ray.transfer.weights import WeightsManager

EpochRow = dict[str, float | int]


class TrainingLoop:
    """Trains one model through its phases and selects an epoch on validation.

    Args:
        spec: the trial.
        model: the built model.
        batches: where each epoch's batches come from.
        plan: the phases.
        transfer: the hook, the losses and their record.
        weights: the optimizer and the hand-over.
        validate: evaluates the model as it is on validation.
        checkpoint: where to save the state at epoch boundaries; None: nowhere.
        on_epoch: called with each epoch's row.
        phase1: where the end of phase 1 is kept for trials that differ in phase 2 alone; None: nowhere.

    Attributes:
        rows: one mapping an epoch, see `TrialResult.epochs`.
        best_epoch: the selected epoch so far, 0 before the first.
        last_evaluated: the last epoch that was validated.
        stopped_epoch: the epoch after which the trial was ended at a rung; None where it was not.
        saved_s: seconds that the phase 1 took which another trial had computed; None where it was computed here.
    """

    def __init__(
        self,
        spec: TrialSpec,
        model: BuiltModel,
        batches: BatchSource,
        plan: PhasePlan,
        transfer: TransferManager,
        weights: WeightsManager,
        validate: Callable[[], Ranking],
        checkpoint: CheckpointFile | None,
        on_epoch: Callable[[dict[str, Any]], None] | None,
        phase1: CheckpointFile | None = None,
    ) -> None:
        self._spec, self._model, self._batches, self._plan = spec, model, batches, plan
        self._transfer, self._weights, self._evaluate = transfer, weights, validate
        self._checkpoint, self._on_epoch, self._phase1 = checkpoint, on_epoch, phase1
        self.saved_s: float | None = None
        self.stopped_epoch: int | None = None
        self._model_state = ModelState(model.module)
        self.rows: list[EpochRow] = []
        self.best_epoch = 0
        self.best_valid: dict[str, float] = {}
        self.last_evaluated = 0
        self._best_value = -math.inf
        self._best_state: dict[str, Any] | None = None

    def run(self) -> None:
        """Runs the epochs that are left and puts the selected weights into the model.

        Raises:
            TrainingError: the loss or what selects became NaN or infinite, or a transfer was asked for that never took place.
        """
        first = self._resume()
        for epoch in range(first, self._plan.epochs + 1):
            if self._is_out():  # before an epoch, not after: so it is asked in the same place when the trial goes on from a checkpoint
                self.stopped_epoch = epoch - 1
                return
            started = time.perf_counter()
            self._train(epoch)
            row: EpochRow = {"epoch": epoch, "phase": self._plan.phase(epoch)} | self._transfer.record()
            if not math.isfinite(row["loss_model"]):
                raise TrainingError(
                    f"the training loss became {row['loss_model']} in epoch {epoch}; lower the learning rate or check the ratings"
                )
            row |= self._validate(epoch)
            row["duration_s"] = time.perf_counter() - started
            self.rows.append(row)
            if self._phase1 is not None and epoch == self._plan.phase1_epochs and self._weights.knows_best:
                self._phase1.save(epoch, self._state)
            if self._checkpoint is not None and epoch < self._plan.epochs:
                self._checkpoint.save(epoch, self._state)
            if self._on_epoch is not None:
                self._on_epoch(dict(row))
        self._transfer.check_computed()
        assert self._best_state is not None, "the last epoch is always evaluated and selectable"
        self._load(self._best_state)

    def _is_out(self) -> bool:
        """Says whether the trial is behind at a rung that it has reached."""
        metric = self._spec.select_on
        reached = [(best_by(self.rows, epoch, metric), asked) for epoch, asked in self._spec.rungs]
        return any(value is not None and is_behind(value, asked, metric) for value, asked in reached)

    def _train(self, epoch: int) -> None:
        """One epoch; every draw in it depends on (seed, epoch) alone, so that a resumed epoch is the same epoch."""
        module, weights, transfer = self._model.module, self._weights, self._transfer
        weights.begin_epoch(epoch)
        seed_globals(derive_seed(self._spec.seed, "dropout", epoch))
        module.train()
        optimizer = weights.optimizer
        passes = self._model.passes(epoch)
        with transfer.epoch(epoch):
            for place, each in enumerate(passes, start=1):
                each.before(module)
                at_rest = each.at_rest(module)
                for batch in self._batches.epoch((epoch - 1) * len(passes) + place):
                    optimizer.zero_grad(set_to_none=True)
                    transfer.backward(self._model.loss(batch.interaction, each), batch.users, batch.lengths)
                    for parameter in at_rest:
                        parameter.grad = None
                    optimizer.step()

    def _validate(self, epoch: int) -> EpochRow:
        """Returns `valid_<metric>` of an epoch, NaN where it is not evaluated, and keeps the best selectable state."""
        due = epoch % self._spec.evaluate_every == 0 or epoch in (self._plan.phase1_epochs, self._plan.epochs)
        if not due:
            return {f"valid_{name}": math.nan for name in self._spec.metrics}
        self._model.module.eval()
        ranking = self._evaluate()
        if not math.isfinite(ranking.means[self._spec.select_on]):
            raise TrainingError(
                f"{self._spec.select_on} on validation became {ranking.means[self._spec.select_on]} in epoch {epoch}; lower the learning "
                "rate, or select on a metric that is defined on this data"
            )
        value = ranking.means[self._spec.select_on] * (-1 if self._spec.select_on in LOWER_IS_BETTER else 1)
        self._weights.observe(epoch, value)
        self.last_evaluated = epoch
        if self._plan.selectable(epoch) and value > self._best_value:
            self.best_epoch, self._best_value, self.best_valid = epoch, value, dict(ranking.means)
            self._best_state = self._model_state.copy()
        return {f"valid_{name}": ranking.means[name] for name in self._spec.metrics}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._model_state.load(state)
        self._model.forget_cached()

    def _state(self) -> dict[str, Any]:
        """Returns all that the epochs to come depend on."""
        return self._model_state.copy() | {
            "best": self._best_state,
            "best_epoch": self.best_epoch,
            "best_value": self._best_value,
            "best_valid": self.best_valid,
            "last_evaluated": self.last_evaluated,
            "rows": self.rows,
            "transfer": self._transfer.state_dict(),
            "weights": self._weights.state_dict(),
            "phase": self._plan.phase(self.rows[-1]["epoch"]),  # type: ignore[arg-type]
        }

    def _resume(self) -> int:
        """Goes on from the own checkpoint or the end of a shared phase 1; returns the epoch to go on with."""
        device = self._model.device
        saved = self._checkpoint.load(device) if self._checkpoint is not None else None
        if saved is not None:
            self._take_over(saved[1])
            self._weights.load_state_dict(saved[1]["weights"])
            self._transfer.load_state_dict(saved[1]["transfer"])
            return saved[0] + 1
        saved = self._phase1.load(device) if self._phase1 is not None else None
        if saved is None:
            return 1
        self._take_over(saved[1])
        self._weights.fork(saved[1]["weights"])
        if self._plan.transfers(saved[0]):
            self._transfer.load_state_dict(saved[1]["transfer"])
        self.saved_s = float(sum(row["duration_s"] for row in self.rows))
        if self._on_epoch is not None:
            for row in self.rows:
                self._on_epoch(dict(row))  # whoever watches this trial sees all of it
        return saved[0] + 1

    def _take_over(self, state: Mapping[str, Any]) -> None:
        self._load(state)
        self._best_state, self.best_epoch, self._best_value = state["best"], state["best_epoch"], state["best_value"]
        self.best_valid, self.last_evaluated, self.rows = state["best_valid"], state["last_evaluated"], list(state["rows"])


def make_adam(spec: TrialSpec) -> Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]:
    """Returns RecBole's optimizer, Adam, in torch's fused form: the same update in one pass over each parameter."""

    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True)

    return make
