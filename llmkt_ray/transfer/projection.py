"""From a tap's width to the target's: a learned projection on the STUDENT side, or the published code's slice.

A learned projection belongs on the student side with a fixed target; on the target's side both could collapse to
the same constant (METHOD.md, section 5).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmkt_ray.errors import TrainingError, unknown_name


class Identity(nn.Module):
    """The tap's rows as they are."""

    def forward(self, h: Tensor) -> Tensor:
        """Returns `h` `(m, d)`."""
        return h


class StudentProjection(nn.Module):
    """A linear map `(m, width) -> (m, dims)`, trained with the model in the transfer phase and then dropped.

    Args:
        width: width of the tap.
        dims: width of the target.
        generator: where its initial weights come from; the global generator is not touched, so that a trial with
            a projection and its twin without one see equal batches and equal dropout.
    """

    def __init__(self, width: int, dims: int, generator: torch.Generator) -> None:
        super().__init__()
        # Glorot's uniform bound, drawn by hand: nn.Linear would draw from the global generator.
        bound = math.sqrt(6 / (width + dims))
        drawn = torch.rand(dims, width, generator=generator, dtype=torch.float32, device=generator.device)
        self.weight = nn.Parameter(drawn * (2 * bound) - bound)
        self.bias = nn.Parameter(torch.zeros(dims))

    def forward(self, h: Tensor) -> Tensor:
        """Returns the projected rows `(m, dims)`."""
        return torch.nn.functional.linear(h, self.weight, self.bias)


class LegacySlice(nn.Module):
    """The first `dims` units of the tap: what the published code did by accident (METHOD.md, trap 1)."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, h: Tensor) -> Tensor:
        """Returns `h[:, :dims]`."""
        return h[:, : self.dims]


PROJECTIONS: dict[str, Callable[[int, int, torch.Generator], nn.Module]] = {
    "none": lambda width, dims, generator: Identity(),
    "student": StudentProjection,
    "legacy_slice": lambda width, dims, generator: LegacySlice(dims),
}


def make_projection(name: str, width: int, dims: int, generator: torch.Generator) -> nn.Module:
    """Returns the projection of that name from a tap's width to the target's.

    Raises:
        TrainingError: there is no such projection; lists the names.
    """
    if name not in PROJECTIONS:
        raise TrainingError(unknown_name("projection", name, PROJECTIONS))
    return PROJECTIONS[name](width, dims, generator)
