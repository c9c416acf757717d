"""Histories as sequences for sequential models: what a user liked before, in order of time."""

from dataclasses import dataclass

import numpy as np
import torch

from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.training.bridge.dataset import PADDING


def check_order(data: PreparedData) -> None:
    """Refuses a split on which a sequence would be trained with its own future.

    Raises:
        TrainingError: the split is random or not in order of time, or the dataset has no timestamps.
    """
    split = data.notes.get("split")
    kind = split.get("kind") if isinstance(split, dict) else None
    if kind == "random":
        raise TrainingError(
            "sequential models need a split in order of time, but this one is random: a sequence would be trained with its own future; "
            "set split.kind to leave_one_out or time"
        )
    if np.isnan(data.train.timestamp).any():
        raise TrainingError(f"sequential models need timestamps, but dataset {data.name!r} has none (or not for every row)")
    first = np.full(data.n_users, np.inf)
    for held_out in (data.valid.positives(), data.test.positives()):
        np.minimum.at(first, held_out.user, held_out.timestamp)
    train = data.train.positives()
    late = np.flatnonzero(train.timestamp > first[train.user])
    if len(late):
        user = train.user[late[0]]
        raise TrainingError(
            f"sequential models need a split in order of time, but split.kind {kind!r} of dataset {data.name!r} has {len(late):,} train "
            f"rows after a held-out row of the same user, of {len(np.unique(train.user[late])):,} users: {str(data.user_tokens[user])!r} "
            f"has one at {train.timestamp[late[0]]:.0f} and a held-out row at {first[user]:.0f}; set split.kind to leave_one_out or time, "
            "or mend the column"
        )


@dataclass(frozen=True)
class SequenceTable:
    """Positives in order of user and time.

    Attributes:
        users, items: indices of the split, int64 `(n,)`.
        before: how many rows of the same user come before each row, int64 `(n,)`.
        longest: items of a sequence at the most; older ones are left out.
    """

    users: np.ndarray
    items: np.ndarray
    before: np.ndarray
    longest: int

    @staticmethod
    def of(parts: list[Rows], longest: int) -> "SequenceTable":
        """Returns the table of the positives of `parts`, merged in order of time (equal times: in the order given)."""
        kept = [part.positives() for part in parts]
        users = np.concatenate([rows.user for rows in kept])
        items = np.concatenate([rows.item for rows in kept])
        times = np.concatenate([rows.timestamp for rows in kept])
        order = np.lexsort((np.arange(len(users)), times, users))
        users, items = users[order].astype(np.int64), items[order].astype(np.int64)
        first = np.searchsorted(users, users, side="left")
        return SequenceTable(users, items, np.arange(len(users)) - first, longest)

    def targets(self) -> np.ndarray:
        """Returns the rows that have something before them: what a model learns to foretell."""
        return np.flatnonzero(self.before > 0)

    def sequences(self, rows: np.ndarray, lengths: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the `lengths` items right before place `rows` as RecBole ids, padded on the right.

        Returns:
            int64 `(n, longest)` and their lengths, int64 `(n,)`, at least 1: an empty sequence is one padding item.
        """
        lengths = np.minimum(lengths, self.longest)
        steps = np.arange(self.longest)
        filled = steps < lengths[:, None]
        places = np.where(filled, (rows - lengths)[:, None] + steps, 0)
        ids = np.where(filled, self.items[places] + PADDING, 0)
        return torch.from_numpy(ids), torch.from_numpy(np.maximum(lengths, 1))

    def whole(self, users: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns each user's whole history, for scoring what comes next; shapes as of `sequences`."""
        first, last = np.searchsorted(self.users, users, side="left"), np.searchsorted(self.users, users, side="right")
        return self.sequences(last, last - first)
