"""The labelled protocol: how well a model tells positives from negatives among rows that users really rated.

AUC in [0, 1], higher is better; LogLoss in [0, inf), lower is better; GAUC: the users' own AUCs, weighted by their positives
(Zhu et al. 2017), higher is better. All three equal RecBole's.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from scipy.stats import rankdata

from llmkt_ray.data.prepared import Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.training.evaluate import Ranking
from llmkt_ray.training.metrics import Metric

_CLIP = 1e-15
"""Distance of a probability from 0 and 1 at the least: LogLoss stays finite, as in RecBole."""


class LabelledTask:
    """One held-out part with all its rows; the label of a row is whether it is a positive.

    Args:
        held_out: the rows of the part.
        metrics: what is computed: AUC, LogLoss, GAUC.

    Raises:
        TrainingError: the part has no positive or no negative row.
    """

    def __init__(self, held_out: Rows, *, metrics: tuple[Metric, ...]) -> None:
        positives = int(held_out.positive.sum())
        if not 0 < positives < len(held_out):
            raise TrainingError(
                f"protocol 'labelled' needs positive and negative rows, but {positives} of the part's {len(held_out)} rows are positive; "
                "set `positive.rating_at_least` so that both occur"
            )
        self.metrics = metrics
        order = np.argsort(held_out.user, kind="stable")
        self._labels = np.asarray(held_out.positive[order], dtype=np.float64)
        self._pairs = tuple(torch.from_numpy(np.asarray(column[order], dtype=np.int64)) for column in (held_out.user, held_out.item))
        self.users, self._starts = np.unique(held_out.user[order], return_index=True)

    def run(self, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Ranking:
        """Returns the metrics over all rows, and each user's own: AUC (NaN where a user has one kind of rows only) and LogLoss.

        Args:
            predict: from user and item indices, int64 `(n,)` each, to probabilities `(n,)`.

        Raises:
            TrainingError: a prediction is NaN.
        """
        scores = predict(*self._pairs).numpy()
        if np.isnan(scores).any():
            raise TrainingError("the model's predictions contain NaN; lower the learning rate, or look at the training loss")
        losses = log_losses(self._labels, scores)
        bounds = [*self._starts, len(scores)]
        own = np.asarray([auc(self._labels[a:b], scores[a:b]) for a, b in pairwise(bounds)])
        weight = np.where(np.isnan(own), 0.0, np.add.reduceat(self._labels, self._starts))
        whole = {
            "AUC": auc(self._labels, scores),
            "LogLoss": float(losses.mean()),
            "GAUC": float(np.nansum(own * weight) / weight.sum()) if weight.sum() else float("nan"),
        }
        counts = np.diff(np.asarray(bounds))
        per_user = {"AUC": own, "GAUC": own, "LogLoss": np.add.reduceat(losses, self._starts) / counts}
        names = [metric.name for metric in self.metrics]
        return Ranking({n: whole[n] for n in names}, self.users.astype(np.int32), {n: per_user[n] for n in names}, None)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half; NaN where one kind of label is missing."""
    positives = labels.sum()
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    return float((rankdata(scores)[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def log_losses(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Logistic loss of each row, in [0, inf), lower is better."""
    clipped = np.clip(scores.astype(np.float64), _CLIP, 1 - _CLIP)
    return np.asarray(-labels * np.log(clipped) - (1 - labels) * np.log(1 - clipped))
