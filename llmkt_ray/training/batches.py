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
from llmkt_ray.training.isolation import seed_globals
from llmkt_ray.training.negatives import OtherItems, UniformNegatives

BatchKind = Literal["pairwise", "pointwise", "users", "sequences", "reference", "labelled"]
_ROWS_AT_ONCE = 1 << 16
"""Rows, negatives included, that are gathered and drawn at once (512 KiB a column): they are still in cache when they are used."""


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

    Attributes:
        kind: the form of the batches.
        path: "lean", or "recbole" where the model's own sampling is RecBole's code.
        n_batches: batches a pass.

    Raises:
        TrainingError: there are no rows, a user leaves no negative to draw, or the model cannot be trained on what there is.
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
        # Half as wide as what models read: an epoch's order jumps through these columns, which then stay in cache.
        self._users, self._items = np.asarray(rows.user, dtype=np.int32), np.asarray(rows.item, dtype=np.int32)
        self._per_row = 0 if labelled else model.negatives_per_row
        self._step = batch_size
        if self.kind == "users":
            self._users = np.unique(self._users)
        elif self.kind == "sequences":
            self._table = SequenceTable.of([rows], model.settings["MAX_ITEM_LIST_LENGTH"])
            self._targets = self._table.targets()
            self._users = self._table.users[self._targets].astype(np.int32)
            self._items = self._table.items[self._targets].astype(np.int32)
        elif self.kind == "labelled":
            self._labels = np.asarray(rows.positive, dtype=np.float32)
        if not len(self._users):
            raise TrainingError("no user has two train positives, so there is no sequence to learn from; check the split")
        self._loader = model.loader(batch_size) if self._per_row else None
        self.path = model.path if not labelled else "lean"
        if self._loader is not None:
            self.n_batches = len(self._loader)
            return
        if self._per_row:
            self._negatives: OtherItems | UniformNegatives = (
                OtherItems(model.n_items)
                if self.kind == "sequences"
                else UniformNegatives(np.asarray(rows.user), np.asarray(rows.item), model.n_users, model.n_items)
            )
            self._step = max(1, batch_size // (self._per_row + (self.kind == "pointwise")))
        self.n_batches = -(-len(self._users) // self._step)
        problem = model.training_problem(len(self._users) - (self.n_batches - 1) * self._step)
        if problem:
            raise TrainingError(problem)

    def row_counts(self) -> np.ndarray:
        """Returns how often each user is the user of a row in one epoch, int64 `(n_users,)`."""
        repeat = {"pairwise": self._per_row, "pointwise": 1 + self._per_row}.get(self.kind, 1)
        return np.bincount(self._users, minlength=self._model.n_users) * repeat

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yields the batches of epoch `epoch` (1-based); a model whose epoch has several passes counts passes."""
        if self._loader is not None:
            for batch in self._loader.epoch(self._seed, epoch):
                yield Batch(*self._model.sampled(batch))
            return
        if self.path == "recbole":
            seed_globals(derive_seed(self._seed, "transform", epoch))
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
        order = torch.randperm(len(self._users), generator=generator).numpy()  # half the time of numpy's permutation
        negatives = np.random.default_rng(derive_seed(self._seed, "negatives", epoch))
        batches_at_once = max(1, _ROWS_AT_ONCE // (self._step * max(self._per_row, 1)))
        for chunk in np.split(order, range(batches_at_once * self._step, len(order), batches_at_once * self._step)):
            yield from self._chunk(chunk, negatives)

    def _chunk(self, order: np.ndarray, generator: np.random.Generator) -> Iterator[Batch]:
        """Yields the batches of the rows `order`, a part of an epoch."""
        of_users = self._users[order]
        users = self._ids(of_users)
        if self.kind == "users":
            for block in torch.split(users, self._step):
                yield Batch(block, self._model.rows(block))
            return
        of_items = self._items[order]
        items = self._ids(of_items)
        if self.kind == "labelled":
            labels = torch.from_numpy(self._labels[order]).to(self._model.device)
            for rows in zip(*(torch.split(column, self._step) for column in (users, items, labels)), strict=True):
                yield Batch(rows[0], self._model.labelled(*rows))
            return
        barred = of_items if self.kind == "sequences" else of_users  # whose own items are no negatives: the row's, or all of its user
        drawn = [self._ids(self._negatives.draw(barred, generator)) for _ in range(self._per_row)]
        columns = [torch.split(column, self._step) for column in (users, items, *drawn)]
        for place, (some_users, some_items, *some_negatives) in enumerate(zip(*columns, strict=True)):
            if self.kind == "sequences":
                targets = order[place * self._step : (place + 1) * self._step]
                yield self._sequences(targets, some_users, some_items, some_negatives)
            else:
                yield (self._pairwise if self.kind == "pairwise" else self._pointwise)(some_users, some_items, some_negatives)

    def _ids(self, indices: np.ndarray) -> torch.Tensor:
        ids = indices.astype(np.int64)
        ids += PADDING
        return torch.from_numpy(ids).to(self._model.device, non_blocking=True)

    def _sequences(self, order: np.ndarray, users: torch.Tensor, items: torch.Tensor, negatives: list[torch.Tensor]) -> Batch:
        targets = self._targets[order]
        sequences, lengths = (part.to(self._model.device) for part in self._table.sequences(targets, self._table.before[targets]))
        interaction = self._model.next_items(users, sequences, lengths, items, *negatives)
        return Batch(users, self._model.transformed(interaction), lengths)

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
