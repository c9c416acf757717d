"""The weighted mean square of rows to their targets in closed form: `mse` and `rmse` without a graph of small operations.

A light model (BPR) computes little more than four passes over its rows, so that each pass and each operation of the transfer
counts. Here the loss and its gradient take three: the difference, its length by row, the difference times the row's weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Squares:
    """A loss of m rows of width d: value = f(S) with S = scale sum_i w_i |h_i - t_i|^2.

    Attributes:
        value: the loss, a scalar without a graph.
        difference: h - t `(m, d)`, in memory that the next loss overwrites.
        length: |h_i - t_i| `(m,)`.
        weight: w_i f'(S) `(m,)`; of a user table it counts the user's rows.
        scale: 1 / (rows of the batch times d).
    """

    value: Tensor
    difference: Tensor
    length: Tensor
    weight: Tensor
    scale: float

    def gradient(self, share: float) -> Tensor:
        """Returns share times the gradient at the rows `(m, d)`, in place of the difference: once only."""
        return self.difference.mul_((self.weight * (2 * self.scale * share)).unsqueeze(1))

    def add_gradient(self, total: Tensor, share: float) -> None:
        """Adds share times the gradient at the rows to `total` `(m, d)`."""
        total.addcmul_(self.difference, self.weight.unsqueeze(1), value=2 * self.scale * share)


class SquaresMaker:
    """Computes `Squares` in memory that it keeps: fresh memory in every step costs as much as the arithmetic in it.

    Args:
        root_eps: None for `mse`; for `rmse` the eps under the root.
    """

    def __init__(self, root_eps: float | None) -> None:
        self._root_eps = root_eps
        self._memory = self._last = torch.empty(0)

    def make(self, h: Tensor, targets: Tensor, users: Tensor | None, weight: Tensor, rows: int) -> Squares:
        """Returns the loss of rows h.

        Args:
            h: `(m, d)`.
            targets: `(n, d)`; row `users[i]` belongs to row i of h, row i where users is None.
            users: int64 `(m,)` or None.
            weight: of the rows `(m,)`.
            rows: rows of the batch, which the mean is taken over.
        """
        h = h.detach()
        difference = self._like(h)
        if users is None:
            torch.sub(h, targets, out=difference)
        else:
            torch.index_select(targets, 0, users, out=difference)
            torch.sub(h, difference, out=difference)
        length = torch.linalg.vector_norm(difference, dim=1)
        scale = 1 / (rows * h.shape[1])
        value = torch.dot(weight * length, length).mul_(scale)
        if self._root_eps is not None:
            value = value.add_(self._root_eps).sqrt_()
            weight = weight * (0.5 / value)
        return Squares(value, difference, length, weight, scale)

    def _like(self, h: Tensor) -> Tensor:
        """Returns a tensor of the shape of h in the memory that is kept."""
        last = self._last
        if last.shape == h.shape and last.dtype == h.dtype and last.device == h.device:
            return last
        if self._memory.numel() < h.numel() or self._memory.dtype != h.dtype or self._memory.device != h.device:
            self._memory = torch.empty(h.numel(), dtype=h.dtype, device=h.device)
        self._last = self._memory[: h.numel()].view(h.shape)
        return self._last
