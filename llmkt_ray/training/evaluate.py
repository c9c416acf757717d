"""Full ranking in user blocks: scores, a sparse mask, one top-k pass, every metric from it, every user kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llmkt_ray.data.prepared import Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.training.metrics import METRICS, Metric
from llmkt_ray.training.negatives import sorted_unique

_SCORES_AT_ONCE = 1 << 19
"""Scores held at once at the most (2 MiB): a block stays in cache, users x items is never whole in memory."""


@dataclass(frozen=True)
class Ranking:
    """The outcome of one evaluation.

    Attributes:
        means: metric name to its mean over users.
        users: indices of the evaluated users, int32 `(n,)`, ascending.
        per_user: metric name to float64 `(n,)`.
        recommended: int32 `(n, k)`, item indices, best first; None where nothing was ranked (protocol `labelled`).
    """

    means: Mapping[str, float]
    users: np.ndarray
    per_user: Mapping[str, np.ndarray]
    recommended: np.ndarray | None


class RankingTask:
    """One held-out part, made ready once: its users, what they liked there, and what is masked.

    Args:
        held_out: the rows of the part; users with at least one positive among them are evaluated.
        masked: the parts whose items are not offered: all train rows of the FULL train split, for test also all
            validation rows (METHOD.md, section 1).
        n_items: size of the item index space.
        metrics: what is computed.

    Raises:
        TrainingError: no user has a positive in the part.
    """

    def __init__(self, held_out: Rows, masked: Sequence[Rows], *, n_items: int, metrics: tuple[Metric, ...]) -> None:
        positives = held_out.positives()
        if not len(positives):
            raise TrainingError(
                "the held-out part has no positive rows to be evaluated on; lower `positive.rating_at_least` or check the split"
            )
        self.metrics, self.n_items = metrics, n_items
        self.k = min(max(metric.k for metric in metrics), n_items)
        self.users = sorted_unique(positives.user).astype(np.int32)
        self._first_keys = self.users.astype(np.int64)[:, None] * n_items
        self._keys = sorted_unique(positives.user.astype(np.int64) * n_items + positives.item)
        # Most recommended items are no positives: a table of hashed keys says so at once, and the few others are looked up exactly.
        self._sieve = np.zeros(1 << (16 * len(self._keys)).bit_length(), dtype=bool)
        self._sieve[self._keys & (len(self._sieve) - 1)] = True
        self._n_positives = np.bincount(np.searchsorted(self.users, self._keys // n_items), minlength=len(self.users))
        block = max(1, _SCORES_AT_ONCE // n_items)
        mask_rows, mask_items = self._mask(masked)
        self._blocks = []
        for start in range(0, len(self.users), block):
            stop = min(start + block, len(self.users))
            first, last = np.searchsorted(mask_rows, [start, stop])
            masked_pairs = torch.from_numpy(mask_rows[first:last] - start), torch.from_numpy(mask_items[first:last])
            self._blocks.append((torch.from_numpy(self.users[start:stop].astype(np.int64)), *masked_pairs))

    def _mask(self, masked: Sequence[Rows]) -> tuple[np.ndarray, np.ndarray]:
        """Returns masked (place among the evaluated users, item) pairs, int64 each, sorted: in the order of the scores in memory."""
        users = np.concatenate([part.user for part in masked])
        items = np.concatenate([part.item for part in masked]).astype(np.int64)
        place = np.minimum(np.searchsorted(self.users, users), len(self.users) - 1)
        known = self.users[place] == users
        place, items = place[known], items[known]
        order = np.argsort(place * self.n_items + items)
        return place[order], items[order]

    def run(self, score: Callable[[torch.Tensor], torch.Tensor]) -> Ranking:
        """Ranks all items for every user of the part.

        Args:
            score: from user indices int64 `(block,)` to scores `(block, n_items)`, which are overwritten.

        Raises:
            TrainingError: a score is NaN.
        """
        best, tops = [], []
        for users, rows, items in self._blocks:
            scores = score(users)
            scores = _masked(scores, rows.to(scores.device), items.to(scores.device))
            values, top = torch.topk(scores, self.k, dim=1)
            del scores  # the next block's take its memory, which is in cache and mapped
            best.append(values[:, 0])
            tops.append(top)
        if torch.isnan(torch.cat(best)).any():  # NaN ranks first, so the best score shows whether there is one
            raise TrainingError("the model's scores contain NaN; lower the learning rate, or look at the training loss")
        recommended = torch.cat(tops).cpu().numpy()
        keys = self._first_keys + recommended
        hits = self._sieve[keys & (len(self._sieve) - 1)]
        of_users, ranks = np.nonzero(hits)
        left = keys[of_users, ranks]
        hits[of_users, ranks] = self._keys[np.minimum(np.searchsorted(self._keys, left), len(self._keys) - 1)] == left
        if self.k < max(metric.k for metric in self.metrics):  # fewer items than k: ranks below the last item hold no hit
            hits = np.pad(hits, ((0, 0), (0, max(metric.k for metric in self.metrics) - self.k)))
        per_user = {metric.name: METRICS[metric.family](hits, self._n_positives, metric.k) for metric in self.metrics}
        means = {name: float(values.mean()) for name, values in per_user.items()}
        return Ranking(means=means, users=self.users, per_user=per_user, recommended=recommended.astype(np.int32))


def _masked(scores: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Returns scores with -inf at `[rows, columns]`; by places in memory, which takes three fifths of what two indices take."""
    if scores.stride(1) != 1 or scores.stride(0) < scores.shape[1]:  # transposed, or one row in memory for many users
        scores = scores.contiguous()
    stride = scores.stride(0)
    memory = scores.as_strided(((len(scores) - 1) * stride + scores.shape[1],), (1,))
    memory.index_fill_(0, torch.add(columns, rows, alpha=stride), -torch.inf)
    return scores
