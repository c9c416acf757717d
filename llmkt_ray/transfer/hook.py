"""The hook manager: reads one activation in the training steps of a transfer phase, and is gone afterwards.

METHOD.md, section 1, and trap 8: the published code's hook also fires in evaluation and keeps every tensor.
Here it is attached for the training steps only, keeps the first call of a step until it is taken, and leaves no
trace in the model once detached. It never changes a value and draws no random number.
"""

from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmkt_ray.errors import LayerError
from llmkt_ray.transfer.sites import pick, select, watch
from llmkt_ray.transfer.taps import Tap


class HookManager:
    """Reads the activation of one tap.

    Args:
        model: the model in training.
        tap: where to read, and how its rows belong to users.

    Raises:
        LayerError: the tap is not usable.
    """

    def __init__(self, model: nn.Module, tap: Tap) -> None:
        if not tap.usable:
            raise LayerError(f"layer {tap.name!r} of {type(model).__name__} cannot be used: {tap.reason}")
        self.tap = tap
        self._model = model
        self._site = tap.site
        self._kept: Tensor | None = None
        self._remove: Callable[[], None] | None = None
        self._listeners: list[RemovableHandle] = []
        self.gradient_norms: tuple[Tensor, Tensor] | None = None
        """Norms of the transfer's and of the model's share of the gradient at the tap, of the last measured step."""

    @property
    def attached(self) -> bool:
        """Whether the model is being watched."""
        return self._remove is not None

    def attach(self) -> None:
        """Starts to watch; watching twice is an error.

        Raises:
            LayerError: the hook is attached already.
        """
        if self._remove is not None:
            raise LayerError(f"the hook on {self.tap.name!r} is attached already")
        self._remove = watch(self._model, self._site.module, self._site.is_input, self._see)

    def detach(self) -> None:
        """Stops to watch and forgets what was kept; detaching twice is fine."""
        if self._remove is not None:
            self._remove()
        self._remove = None
        self._kept = None
        self._stop_listening()

    def __enter__(self) -> "HookManager":
        self.attach()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.detach()

    def _see(self, value: object) -> None:
        # The first call of a training step is the one that counts; scoring under no_grad is none of our business.
        if self._kept is None and torch.is_grad_enabled():
            self._kept = pick(value, self._site.path)

    def take(self, users: Tensor, lengths: Tensor | None = None, measure: bool = False) -> tuple[Tensor, Tensor]:
        """Returns what the last step's first call gave, and forgets it.

        Args:
            users: user id of every row of the batch, int64 `(batch,)`.
            lengths: filled positions of every row, int64 `(batch,)`; needed by a sequence tap only.
            measure: leave `gradient_norms` after the backward pass of this step.

        Returns:
            the activation's rows `(m, width)` and the user each belongs to, int64 `(m,)`.

        Raises:
            LayerError: the tap never fired, takes no gradient, or its shape does not fit the batch.
        """
        activation, self._kept = self._kept, None
        if activation is None:
            raise LayerError(f"layer {self.tap.name!r} of {type(self._model).__name__} did not fire in this training step")
        if not activation.requires_grad:
            kind = "is integer-valued" if not activation.is_floating_point() else "takes no gradient (all parameters before it are frozen?)"
            raise LayerError(f"layer {self.tap.name!r} of {type(self._model).__name__} {kind}: nothing could be learned through it")
        self._stop_listening()
        return self._rows(self.listen(activation) if measure else activation, users, lengths)

    def listen(self, activation: Tensor) -> Tensor:
        """Returns a view of the activation that only the transfer loss sees, and listens to both gradients.

        The gradient at the activation is the sum of both losses' shares, that at the view the transfer's alone: one
        ordinary backward pass gives both norms.
        """
        ours = activation.view_as(activation)
        shares: list[Tensor] = []

        def both(total: Tensor) -> None:
            self.gradient_norms = (shares[0].norm(), (total - shares[0]).norm())

        self._listeners = [ours.register_hook(shares.append), activation.register_hook(both)]  # type: ignore[no-untyped-call]
        return ours

    def listen_to_model(self, activation: Tensor, transfer: Tensor) -> None:
        """Listens to the gradient at an activation that takes no part in the transfer loss, whose own share has the norm `transfer`."""

        def models(share: Tensor) -> None:
            self.gradient_norms = (transfer, share.norm())

        self._listeners = [activation.register_hook(models)]  # type: ignore[no-untyped-call]

    def _stop_listening(self) -> None:
        for handle in self._listeners:
            handle.remove()
        self._listeners = []

    def _rows(self, activation: Tensor, users: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        alignment = self.tap.alignment
        if alignment in ("user_table", "user_item_table"):
            return activation.index_select(0, users), users
        rows = select(activation, self._site.position, self.tap.batch_dim)
        if alignment == "sequence":
            if lengths is None:
                raise LayerError(f"layer {self.tap.name!r} is a sequence: the lengths of the batch's histories are needed")
            if rows.shape[:1] != users.shape:
                raise self._mismatch(activation, users)
            last = (lengths - 1).clamp(min=0)
            return rows[torch.arange(len(users), device=users.device), last], users
        if alignment == "user_prefix" and rows.shape[0] <= users.shape[0]:
            return rows, users[: rows.shape[0]]
        if rows.shape[0] != users.shape[0]:
            raise self._mismatch(activation, users)
        return rows, users

    def _mismatch(self, activation: Tensor, users: Tensor) -> LayerError:
        return LayerError(
            f"layer {self.tap.name!r} gave shape {tuple(activation.shape)} for a batch of {len(users)} rows, "
            f"but as {self.tap.alignment} it must have one row for each"
        )
