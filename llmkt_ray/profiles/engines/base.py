"""The one interface of all engines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from llmkt_ray.data.leaks import Certificate
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.table import ProfileRow

Progress = Callable[[int, int], None]
"""Called with (users done, users in all) as the work goes on."""


def silent(done: int, total: int) -> None:
    """Reports no progress."""


Charge = Callable[[Sequence[ProfileRow]], None]
"""Called with rows whose tokens were paid for; it raises `BudgetSpent` where nothing more may be asked."""


def _free(rows: Sequence[ProfileRow]) -> None:
    """Counts nothing."""


@dataclass(frozen=True)
class Written:
    """What an engine gives.

    Attributes:
        table: rows of `table.SCHEMA`, in any order; `generate` checks that every user has exactly one.
        certificate: what is known about leaks.
        notes: facts about the making that are not inputs (warnings, costs), JSON values.
    """

    table: pa.Table
    certificate: Certificate
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """The circumstances of one run of an engine.

    Attributes:
        seed: of what the engine draws.
        progress: told as users (or items) end.
        parts: part files of the run before, and of this one.
        charge: told of rows as they are paid for, those of the run before first.
    """

    seed: int
    progress: Progress
    parts: Parts
    charge: Charge = _free


class Engine(Protocol):
    """Writes the profiles of all users of a split."""

    is_llm: bool
    """Whether a language model wrote the texts."""
    draws: bool
    """Whether texts depend on a seed."""

    def identity(self) -> dict[str, Any]:
        """Returns what determines the texts beside the history: part of the profiles' key, JSON values only.

        Raises:
            ProfileError: the engine cannot work as configured; found before anything expensive starts.
        """

    def write(self, data: PreparedData, job: Job) -> Written:
        """Writes one row for every user of `data`.

        Raises:
            ProfileError: not even a row with an error can be written.
        """
