"""The batches of an epoch: order and negatives drawn at once, each batch a slice of ready tensors.

Order and negatives of an epoch depend on (trial seed, epoch) and on nothing else, so arms see equal batches and a resumed
trial needs no saved generator.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from llmkt_ray.data.prepared import Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.seeds import derive_seed
from llmkt_ray.training.bridge.dataset import PADDING
from llmkt_ray.training.bridge.models import BuiltModel
from llmkt_ray.training.bridge.sequences import SequenceTable
from llmkt_ray.training.negatives import UniformNegatives

BatchKind = Literal["pairwise", "pointwise", "users", "sequences", "reference", "labelled"]
_DRAWS_AT_ONCE = 1 << 20
"""Negatives drawn at once at the most: bounds memory where a row has many."""


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        users: RecBole user ids of the batch's rows, int64 `(batch,)`: what a tap's rows are matched with.
        interaction: what the model's `calculate_loss` reads.
        lengths: filled positions of each row's history, int64 `(batch,)`, for sequential models.
    """

    users: torch.Tensor
    interaction: Any
    lengths: torch.Tensor | None = None


class BatchSource:
    """Makes the batches of each epoch for one model.

    `batch_size` counts rows as RecBole does: a positive and its negatives are `1 + s` rows of a pointwise batch and `s` rows of
    a pairwise one; for autoencoders a row is a user.

    Args:
        model: the built model; its kind decides the form of the batches.
        rows: the train rows it learns from.
        batch_size: rows a batch.
        seed: the trial's seed.
        labelled: every row is an example with the label `positive`, no negatives are drawn (protocol `labelled`).

    Raises:
        TrainingError: there are no rows, or a user leaves no negative to draw.
    """

    def __init__(self, model: BuiltModel, rows: Rows, *, batch_size: int, seed: int, labelled: bool = False) -> None:
        if not len(rows):
            raise TrainingError("the train part has no positive rows to learn from; lower `positive.rating_at_least` or check the split")
        self._model, self._seed = model, seed
        self.kind: BatchKind = "labelled" if labelled else model.entry.batches
        if labelled and model.entry.batches != "pointwise":
            raise TrainingError(
                f"protocol 'labelled' needs a model that learns from labels, but {model.entry.name} learns from {model.entry.batches}"
            )
        self._users, self._items = np.asarray(rows.user, dtype=np.int64), np.asarray(rows.item, dtype=np.int64)
        self._per_row = 0 if labelled else model.negatives_per_row
        self._step = batch_size
        if self.kind == "users":
            self._users = np.unique(self._users)
        elif self.kind == "sequences":
            self._table = SequenceTable.of([rows], model.settings["MAX_ITEM_LIST_LENGTH"])
            self._targets = self._table.targets()
            self._users, self._items = self._table.users[self._targets], self._table.items[self._targets]
        elif self.kind == "labelled":
            self._labels = np.asarray(rows.positive, dtype=np.float32)
        if not len(self._users):
            raise TrainingError("no user has two train positives, so there is no sequence to learn from; check the split")
        if self._per_row:
            self._negatives = UniformNegatives(np.asarray(rows.user), np.asarray(rows.item), model.n_users, model.n_items)
            self._step = max(1, batch_size // (self._per_row + (self.kind == "pointwise")))
        self.n_batches = -(-len(self._users) // self._step)

    def row_counts(self) -> np.ndarray:
        """Returns how often each user is the user of a row in one epoch, int64 `(n_users,)`."""
        repeat = {"pairwise": self._per_row, "pointwise": 1 + self._per_row}.get(self.kind, 1)
        return np.bincount(self._users, minlength=self._model.n_users) * repeat

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yields the batches of epoch `epoch` (1-based); a model whose epoch has several passes counts passes."""
        order = np.random.default_rng(derive_seed(self._seed, "order", epoch)).permutation(len(self._users))
        users = self._ids(self._users[order])
        if self.kind == "users":
            for block in torch.split(users, self._step):
                yield Batch(block, self._model.rows(block))
            return
        items = self._ids(self._items[order])
        if self.kind == "labelled":
            labels = torch.from_numpy(self._labels[order]).to(self._model.device)
            for rows in self._slices(len(order)):
                yield Batch(users[rows], self._model.labelled(users[rows], items[rows], labels[rows]))
            return
        for rows, negatives in self._with_negatives(order, np.random.default_rng(derive_seed(self._seed, "negatives", epoch))):
            if self.kind == "sequences":
                yield self._sequences(order[rows], users[rows], items[rows], negatives)
            else:
                yield (self._pairwise if self.kind == "pairwise" else self._pointwise)(users[rows], items[rows], negatives)

    def _slices(self, n_rows: int) -> list[slice]:
        return [slice(start, min(start + self._step, n_rows)) for start in range(0, n_rows, self._step)]

    def _with_negatives(self, order: np.ndarray, generator: np.random.Generator) -> Iterator[tuple[slice, list[torch.Tensor]]]:
        """Yields each batch's slice of `order` and its negatives, one tensor for each negative of a row."""
        batches_at_once = max(1, _DRAWS_AT_ONCE // (self._step * max(self._per_row, 1)))
        slices = self._slices(len(order))
        for first in range(0, len(slices), batches_at_once):
            group = slices[first : first + batches_at_once]
            start = group[0].start
            of_users = self._users[order[start : group[-1].stop]]
            drawn = [self._ids(self._negatives.draw(of_users, generator)) for _ in range(self._per_row)]
            for rows in group:
                yield rows, [column[rows.start - start : rows.stop - start] for column in drawn]

    def _ids(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices + PADDING).to(self._model.device, non_blocking=True)

    def _sequences(self, order: np.ndarray, users: torch.Tensor, items: torch.Tensor, negatives: list[torch.Tensor]) -> Batch:
        targets = self._targets[order]
        sequences, lengths = (part.to(self._model.device) for part in self._table.sequences(targets, self._table.before[targets]))
        return Batch(users, self._model.next_items(users, sequences, lengths, items, *negatives), lengths)

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
