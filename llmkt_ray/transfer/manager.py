"""What the training loop holds in its hands: one object for the hook, the losses and their record.

The loop reads: `with transfer.epoch(e):` around the training steps, `transfer.backward(loss_model, users)` in each,
`transfer.record()` after them, and `transfer.check_computed()` at the end of the trial.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmkt_ray.errors import TrainingError
from llmkt_ray.transfer.hook import HookManager
from llmkt_ray.transfer.loss import LossManager, check_widths
from llmkt_ray.transfer.phases import PhasePlan
from llmkt_ray.transfer.projection import make_projection
from llmkt_ray.transfer.state import untouched
from llmkt_ray.transfer.taps import Tap

BETA_RANGE = (1e-3, 1e3)
BALANCE_BATCHES = 10
_EPS = 1e-12


@dataclass(frozen=True)
class TransferSetup:
    """A trial's transfer.

    Attributes:
        tap: where.
        targets: float32 `(n_user_ids, dims)` in the MODEL's user ids (joined by token; padding row zero).
        weights: float32 `(n_user_ids,)` of `user_weights`; 0 for users without a profile and for padding.
        alpha: weight of the transfer loss, in (0, 1].
        loss: name in `LOSSES`.
        projection: name in `PROJECTIONS`.
        generator: where a projection's weights come from, and nothing else.
    """

    tap: Tap
    targets: Tensor
    weights: Tensor
    alpha: float
    loss: str = "mse"
    projection: str = "none"
    generator: torch.Generator | None = None


class TransferManager:
    """Reads the tap, adds the transfer loss in transferring epochs, and keeps the record.

    Args:
        model: the model in training.
        plan: the phases.
        setup: the transfer; None: plain training throughout, and every method still works.

    Raises:
        LayerError: the tap cannot be used, or its width does not fit the target's.
        TrainingError: an unknown loss or projection, or alpha outside (0, 1].
    """

    def __init__(self, model: nn.Module, plan: PhasePlan, setup: TransferSetup | None) -> None:
        self._model = model
        self._plan = plan
        self._alpha_now = 0.0
        self._sums = [torch.zeros(()), torch.zeros(())]
        self._steps = 0
        self._transferred = False
        self.transfer_steps = 0
        """Training steps whose transfer loss was computed, over the whole trial."""
        self._setup = setup
        self._on_table: Tensor | None = None
        self.projection: nn.Module | None = None
        if setup is None:
            return
        if not 0 < setup.alpha <= 1:
            raise TrainingError(f"alpha of a transfer must lie in (0, 1], but got {setup.alpha:g}; without transfer the arm is alpha0")
        dims = setup.targets.shape[1]
        check_widths(setup.loss, setup.projection, setup.tap.name, setup.tap.width, dims)
        generator = setup.generator if setup.generator is not None else torch.Generator().manual_seed(0)
        self.projection = make_projection(setup.projection, setup.tap.width, dims, generator).to(setup.targets.device)
        self._hook = HookManager(model, setup.tap)
        self._loss = LossManager(setup.loss, setup.targets, setup.weights)
        self._table = _user_table(model, setup)

    @property
    def beta(self) -> float:
        """The balance that multiplies the transfer loss; 1 where there is none."""
        return self._loss.beta if self._setup is not None else 1.0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The student projection's parameters, for the weights manager's `extra`."""
        return list(self.projection.parameters()) if self.projection is not None else []

    def balance(self, losses: Iterable[tuple[Tensor, ...]], targets: Tensor, weights: Tensor) -> float:
        """Sets and returns beta = |L_model| / (L_rec + eps) over the first phase-1 batches at initialisation.

        Nothing is trained, and the model's counters, buffers and the global random state come back as they were.

        Args:
            losses: lazily, for each batch in order, the model's loss, the batch's users and, for a sequence tap, the lengths
                of their histories; at most 10 are used.
            targets: the TREATED arm's targets in the model's user ids: a control twin shares the treated beta.
            weights: the treated arm's weights, 0 where it has no profile: its twins may cover other users.

        Raises:
            TrainingError: there was no batch, or a loss is not finite.
        """
        if self._setup is None or self.projection is None:
            return 1.0
        model_sum, transfer_sum, count = 0.0, 0.0, 0
        with untouched(self._model), self._hook:
            for loss_model, users, *lengths in losses:
                h, rows = self._hook.take(users, lengths[0] if lengths else None)
                with torch.no_grad():
                    transfer_sum += float(self._loss.transfer(self.projection(h), rows, (targets, weights)))
                model_sum += float(loss_model.detach())
                count += 1
                if count == BALANCE_BATCHES:
                    break
        if count == 0 or not math.isfinite(model_sum) or not math.isfinite(transfer_sum):
            raise TrainingError(
                f"balance 'initial' needs finite losses at initialisation, but {count} batches gave model loss {model_sum:g} "
                f"and transfer loss {transfer_sum:g}; check the targets and the learning settings, or set balance to 'none'"
            )
        low, high = BETA_RANGE
        self._loss.beta = min(max(abs(model_sum) / (transfer_sum + _EPS), low), high)
        return self._loss.beta

    @contextmanager
    def epoch(self, epoch: int) -> Iterator[None]:
        """Encloses the TRAINING steps of an epoch (from 1); the hook exists inside and nowhere else."""
        self._alpha_now = self._plan.alpha(self._setup.alpha, epoch) if self._setup is not None else 0.0
        self._sums = [torch.zeros(()), torch.zeros(())]
        self._steps = 0
        self._transferred = self._alpha_now > 0
        self._on_table = None
        if not self._transferred:
            yield
            return
        self._hook.gradient_norms = None
        with self._hook:
            yield
        self._alpha_now = 0.0

    def step(self, loss_model: Tensor, users: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns the loss to descend in one training step.

        Args:
            loss_model: the model's own loss, a scalar, just computed by a forward pass on this batch.
            users: user id of every batch row, int64 `(batch,)`, in the model's ids.
            lengths: filled positions of every row's history `(batch,)`; needed by a sequence tap only.

        Raises:
            LayerError: the tap did not fire or takes no gradient.
        """
        self._steps += 1
        self._sums[0] = self._sums[0] + loss_model.detach()
        if self._alpha_now == 0 or self.projection is None:
            return loss_model
        h, rows = self._hook.take(users, lengths, measure=self._steps == 1)
        loss_transfer = self._loss.transfer(self.projection(h), rows)
        self._sums[1] = self._sums[1] + loss_transfer.detach()
        self.transfer_steps += self._loss.computed
        return self._loss.combine(loss_model, loss_transfer, self._alpha_now)

    def backward(self, loss_model: Tensor, users: Tensor, lengths: Tensor | None = None) -> None:
        """Adds the gradients of the loss that `step` returns to the parameters, in fewer operations where they are known in closed form.

        Takes what `step` takes.

        Raises:
            LayerError: the tap did not fire or takes no gradient.
        """
        if self._alpha_now == 0 or self.projection is None or not self._loss.has_squares:
            self.step(loss_model, users, lengths).backward()  # type: ignore[no-untyped-call]
            return
        self._steps += 1
        self.transfer_steps += 1
        self._sums[0] = self._sums[0] + loss_model.detach()
        share = self._alpha_now * self.beta
        losses = [loss_model] if self._alpha_now < 1 else []
        shares = [torch.full_like(each, 1 - self._alpha_now) for each in losses]
        first, tapped, rows = self._steps == 1, None, users
        if self._on_table is None:
            tapped, rows = self._hook.take(users, lengths, measure=first and self._table is None)
            if first and self._table is not None:
                self._on_table = self._proven(self._table, tapped, users)
                tapped = self._hook.listen(tapped) if self._on_table is None else tapped
        else:
            self._hook.detach()  # not before: the first step's backward pass is still listened to
        if self._on_table is None:
            h = self.projection(tapped)
            squares = self._loss.squares(h, rows)
            torch.autograd.backward([*losses, h], [*shares, squares.gradient(share)])
        else:
            squares = self._loss.table_squares(self._on_table, users)
            if tapped is not None:
                self._hook.listen_to_model(tapped, self._loss.row_norm(squares, share))
            if losses:
                torch.autograd.backward(losses, shares)
            if self._on_table.grad is None:
                self._on_table.grad = torch.zeros_like(self._on_table)
            squares.add_gradient(self._on_table.grad, share)
        self._sums[1] = self._sums[1] + squares.value

    def _proven(self, table: nn.Embedding, h: Tensor, users: Tensor) -> Tensor | None:
        """Returns the user table, for the rest of the epoch, if its rows are what the hook reads and it is the smaller one."""
        weight = table.weight
        return weight if self._loss.reads_tables(len(users)) and torch.equal(h.detach(), weight.detach()[users]) else None

    def record(self) -> dict[str, float]:
        """Returns the epoch's means: loss_model, loss_transfer and gradient_ratio.

        gradient_ratio = |gradient of the weighted transfer loss| / |gradient of the weighted model loss| at the tapped
        rows, in the epoch's first step; NaN in an epoch without transfer or where the model's share is 0.
        """
        steps = max(self._steps, 1)
        norms = self._hook.gradient_norms if self._transferred else None
        return {
            "loss_model": float(self._sums[0]) / steps,
            "loss_transfer": float(self._sums[1]) / steps if self._transferred else math.nan,
            "gradient_ratio": float(norms[0] / norms[1]) if norms is not None and float(norms[1]) > 0 else math.nan,
        }

    def check_computed(self) -> None:
        """Refuses a finished trial whose transfer loss was never computed (METHOD.md, trap 13).

        Raises:
            TrainingError: alpha is above 0 and no step transferred anything.
        """
        if self._setup is not None and self.transfer_steps == 0:
            raise TrainingError(
                f"alpha is {self._setup.alpha:g}, but the transfer loss on layer {self._setup.tap.name!r} was never computed: "
                "no epoch transferred; check schedule.switch and the number of epochs, and, for a loss that compares users, that "
                "a batch holds at least two users with a profile"
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resume needs: beta and the count of transfer steps (the projection is in the weights manager)."""
        return {"beta": self.beta, "transfer_steps": self.transfer_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.transfer_steps = int(state["transfer_steps"])
        if self._setup is not None:
            self._loss.beta = float(state["beta"])


def _user_table(model: nn.Module, setup: TransferSetup) -> nn.Embedding | None:
    """Returns the embedding whose output is tapped as it is, if it can be the table of users: the first step of each epoch verifies it.

    The loss of its rows is then computed on the table itself where that is smaller: a light model (BPR) has little else to compute.
    """
    site = setup.tap.site
    if setup.tap.alignment != "user_rows" or setup.projection != "none" or site.is_input or site.path or site.position is not None:
        return None
    module = dict(model.named_modules()).get(site.module)
    if not isinstance(module, nn.Embedding) or module.max_norm is not None or module.sparse:
        return None
    return module if module.num_embeddings == len(setup.targets) else None
