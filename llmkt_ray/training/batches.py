"""The batches of an epoch: order and negatives drawn at once, each batch a slice of ready tensors.

Order and negatives of an epoch depend on (trial seed, epoch) and on nothing else, so arms see equal batches and a resumed
trial needs no saved generator.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmkt_ray.data.prepared import Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.seeds import derive_seed
from llmkt_ray.training.bridge.dataset import PADDING
from llmkt_ray.training.bridge.models import BuiltModel
from llmkt_ray.training.negatives import UniformNegatives

_DRAWS_AT_ONCE = 1 << 20
"""Negatives drawn at once at the most: bounds memory where a row has many."""


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        users: RecBole user ids of the batch's rows, int64 `(batch,)`: what a tap's rows are matched with.
        interaction: what the model's `calculate_loss` reads.
    """

    users: torch.Tensor
    interaction: Any


class BatchSource:
    """Makes the batches of each epoch for one model.

    `batch_size` counts rows as RecBole does: a positive and its negatives are `1 + s` rows of a pointwise batch and `s` rows of
    a pairwise one; for autoencoders a row is a user.

    Args:
        model: the built model; its kind decides the form of the batches.
        rows: the train rows it learns from.
        batch_size: rows a batch.
        seed: the trial's seed.

    Raises:
        TrainingError: there are no rows, or a user leaves no negative to draw.
    """

    def __init__(self, model: BuiltModel, rows: Rows, *, batch_size: int, seed: int) -> None:
        if not len(rows):
            raise TrainingError("the train part has no positive rows to learn from; lower `positive.rating_at_least` or check the split")
        self._model, self._seed = model, seed
        self._users, self._items = np.asarray(rows.user, dtype=np.int64), np.asarray(rows.item, dtype=np.int64)
        self.kind = model.entry.batches
        self._per_row = model.negatives_per_row
        if self.kind == "users":
            self._users = np.unique(self._users)
            self._step = batch_size
        else:
            self._negatives = UniformNegatives(self._users, self._items, model.n_users, model.n_items)
            self._step = max(1, batch_size // (self._per_row + (self.kind == "pointwise")))
        self.n_batches = -(-len(self._users) // self._step)

    def row_counts(self) -> np.ndarray:
        """Returns how often each user is the user of a row in one epoch, int64 `(n_users,)`."""
        repeat = {"users": 1, "pairwise": self._per_row, "pointwise": 1 + self._per_row}[self.kind]
        return np.bincount(self._users, minlength=self._model.n_users) * repeat

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yields the batches of epoch `epoch` (1-based)."""
        order = np.random.default_rng(derive_seed(self._seed, "order", epoch)).permutation(len(self._users))
        users = self._ids(self._users[order])
        if self.kind == "users":
            for block in torch.split(users, self._step):
                yield Batch(block, self._model.rows(block))
            return
        generator = np.random.default_rng(derive_seed(self._seed, "negatives", epoch))
        items = self._ids(self._items[order])
        batches_at_once = max(1, _DRAWS_AT_ONCE // (self._step * self._per_row))
        for start in range(0, len(order), self._step * batches_at_once):
            chunk = order[start : start + self._step * batches_at_once]
            drawn = [self._ids(self._negatives.draw(self._users[chunk], generator)) for _ in range(self._per_row)]
            for first in range(0, len(chunk), self._step):
                rows = slice(start + first, start + min(first + self._step, len(chunk)))
                negatives = [column[first : first + self._step] for column in drawn]
                yield (
                    self._pairwise(users[rows], items[rows], negatives)
                    if self.kind == "pairwise"
                    else self._pointwise(users[rows], items[rows], negatives)
                )

    def _ids(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices + PADDING).to(self._model.device, non_blocking=True)

    def _pairwise(self, users: torch.Tensor, items: torch.Tensor, negatives: list[torch.Tensor]) -> Batch:
        if len(negatives) > 1:
            users, items = users.repeat(len(negatives)), items.repeat(len(negatives))
        drawn = negatives[0] if len(negatives) == 1 else torch.cat(negatives)
        return Batch(users, self._model.pairs(users, items, drawn))

    def _pointwise(self, users: torch.Tensor, items: torch.Tensor, negatives: list[torch.Tensor]) -> Batch:
        all_users = users.repeat(1 + len(negatives))
        labels = torch.zeros(len(all_users), device=users.device)
        labels[: len(users)] = 1.0
        return Batch(all_users, self._model.labelled(all_users, torch.cat([items, *negatives]), labels))
