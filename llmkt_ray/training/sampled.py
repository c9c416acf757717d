"""The sampled protocol of the paper's published code, `paper_2024`: selection on `pop20`, the result on `uni100`.

Each held-out positive is ranked among items that were drawn for its user: 20 a positive by popularity on validation, 100 uniformly on
test (RecBole's evaluation modes of these names). Such figures are not consistent with a full ranking (Krichene and Rendle, KDD 2020), which
is why this protocol has to be asked for by name. Two things differ from RecBole: the items are drawn once a trial and not in every
evaluation, so that epochs and arms of a seed meet the same ones; and popularity is counted on the rows of the full train split, not on
held-out ones too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from llmkt_ray.data.prepared import Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.training.evaluate import Ranking, RankingTask
from llmkt_ray.training.metrics import Metric
from llmkt_ray.training.negatives import sorted_unique


@dataclass(frozen=True)
class Draw:
    """How the items are drawn that a positive is ranked among.

    Attributes:
        count: items for each positive; one that is drawn twice for a user counts once, as in RecBole.
        by: "popularity" (share of known interactions) or "uniform".
    """

    count: int
    by: Literal["popularity", "uniform"]


POP20, UNI100 = Draw(20, "popularity"), Draw(100, "uniform")


class SampledTask:
    """One held-out part with the items that its positives are ranked among.

    Args:
        held_out: the rows of the part; users with at least one positive are evaluated.
        known: rows whose items are not drawn for their user, beside those of the part itself.
        n_items: size of the item index space.
        metrics: what is computed.
        draw: how items are drawn.
        seed: of the draw.

    Raises:
        TrainingError: no user has a positive in the part, or a user has no item left to draw.
    """

    def __init__(self, held_out: Rows, known: Sequence[Rows], *, n_items: int, metrics: tuple[Metric, ...], draw: Draw, seed: int) -> None:
        nothing = held_out.where(np.zeros(len(held_out), dtype=bool))
        self._ranking = RankingTask(held_out, [nothing], n_items=n_items, metrics=metrics)
        positives = held_out.positives()
        used = np.concatenate([part.user.astype(np.int64) * n_items + part.item for part in (*known, held_out)])
        popularity = np.bincount(np.concatenate([part.item for part in known]), minlength=n_items) if draw.by == "popularity" else None
        drawn = draw_unused(np.repeat(positives.user, draw.count), sorted_unique(used), n_items, popularity, np.random.default_rng(seed))
        users = np.concatenate([positives.user, np.repeat(positives.user, draw.count)])
        items = np.concatenate([positives.item, drawn])
        offered = sorted_unique(users.astype(np.int64) * n_items + items)
        self._users, self._items = offered // n_items, torch.from_numpy(offered % n_items)

    def run_pairs(self, score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Ranking:
        """Ranks as `run` does, from a function that scores pairs: a fraction of the work for models that can do nothing else.

        Args:
            score: from user and item indices int64 `(n,)` each to scores `(n,)`.

        Raises:
            TrainingError: a score is NaN.
        """
        values = score(torch.from_numpy(self._users), self._items)
        n_items = self._ranking.n_items

        def offered_only(users: torch.Tensor) -> torch.Tensor:
            rows, places = self._places(users.numpy())
            kept = values.new_full((len(users), n_items), -torch.inf)
            kept[rows, self._items[places]] = values[places]
            return kept

        return replace(self._ranking.run(offered_only), recommended=None)

    def run(self, score: Callable[[torch.Tensor], torch.Tensor]) -> Ranking:
        """Ranks each user's positives among the drawn items; no list is kept, because nothing is recommended from a sample.

        Args:
            score: from user indices int64 `(block,)` to scores of all items `(block, n_items)`.

        Raises:
            TrainingError: a score is NaN.
        """

        def offered_only(users: torch.Tensor) -> torch.Tensor:
            scores = score(users)
            rows, places = self._places(users.numpy())
            rows, items = rows.to(scores.device), self._items[places].to(scores.device)
            kept = torch.full_like(scores, -torch.inf)
            kept[rows, items] = scores[rows, items]
            return kept

        return replace(self._ranking.run(offered_only), recommended=None)

    def _places(self, users: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns for every offered pair of these users, in order, its row among them and its place among all offered pairs."""
        first, last = np.searchsorted(self._users, users, side="left"), np.searchsorted(self._users, users, side="right")
        rows = np.repeat(np.arange(len(users)), last - first)
        return torch.from_numpy(rows), torch.from_numpy(np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)]))


def draw_unused(
    users: np.ndarray, used: np.ndarray, n_items: int, popularity: np.ndarray | None, generator: np.random.Generator
) -> np.ndarray:
    """Returns one item for each row that its user has not used, int64 `(n,)`.

    Args:
        users: the user of each row, integer `(n,)`.
        used: `user * n_items + item` of every used pair, int64, sorted, each once.
        n_items: number of items.
        popularity: weight of each item `(n_items,)`; None: uniform.
        generator: decides the outcome.

    Raises:
        TrainingError: a user has used every item that can be drawn.
    """
    possible = np.arange(n_items) if popularity is None else np.flatnonzero(popularity)
    left = len(possible) - np.bincount(used[np.isin(used % n_items, possible)] // n_items, minlength=int(users.max(initial=0)) + 1)
    full = np.unique(users[left[users] <= 0])
    if len(full):
        raise TrainingError(
            f"protocol 'paper_2024' ranks among items that a user does not know, but {len(full)} users (the first has index {full[0]}) "
            f"know all {len(possible)} of them; filter them with `filters.user_max`, or use protocol 'full'"
        )
    weights = None if popularity is None else popularity[possible] / popularity.sum()
    drawn = np.zeros(len(users), dtype=np.int64)
    rows = np.arange(len(users))
    while len(rows):
        drawn[rows] = generator.choice(possible, size=len(rows), p=weights)
        keys = users[rows].astype(np.int64) * n_items + drawn[rows]
        place = np.minimum(np.searchsorted(used, keys), len(used) - 1)
        rows = rows[used[place] == keys]
    return drawn
