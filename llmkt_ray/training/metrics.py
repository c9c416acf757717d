"""Ranking metrics of one top-k pass, per user; equal to RecBole's evaluator on the same scores.

Each takes `hits`, bool `(users, K)` (is the item at this rank a positive of the user), and `positives`, int `(users,)` (how many
the user has, at least 1), and returns float64 `(users,)` in [0, 1], higher is better.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from llmkt_ray.errors import TrainingError, unknown_name


def ndcg(hits: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain: log2 discount, ideal list of min(positives, k) hits."""
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    ideal: np.ndarray = np.cumsum(gains)[np.minimum(positives, k) - 1]
    return np.asarray(hits[:, :k].dot(gains) / ideal)


def recall(hits: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Share of the user's positives among the first k."""
    return np.asarray(hits[:, :k].sum(axis=1) / positives)


def precision(hits: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Share of the first k that are positives."""
    return np.asarray(hits[:, :k].sum(axis=1) / k)


def hit(hits: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """1 where at least one of the first k is a positive."""
    return np.asarray(hits[:, :k].any(axis=1), dtype=np.float64)


def mrr(hits: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """1 / rank of the first positive among the first k, 0 where there is none."""
    first = hits[:, :k].argmax(axis=1)
    return np.where(hits[:, :k].any(axis=1), 1.0 / (first + 1), 0.0)


def average_precision(hits: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Mean of precision at each hit among the first k, over min(positives, k): MAP when averaged over users."""
    cut = hits[:, :k]
    precisions = cut.cumsum(axis=1) / np.arange(1, k + 1)
    return np.asarray((precisions * cut).sum(axis=1) / np.minimum(positives, k))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "NDCG": ndcg, "Recall": recall, "Hit": hit, "MRR": mrr, "Precision": precision, "MAP": average_precision,
}  # fmt: skip


LABEL_METRICS = ("AUC", "GAUC", "LogLoss")
"""Metrics of protocol `labelled`, computed by `llmkt_ray.training.labelled`; they have no depth."""
PROTOCOLS = ("full", "labelled", "paper_2024")
"""Ranking of the whole catalogue; rows with labels; ranking among sampled items (`llmkt_ray.training.sampled`)."""
LOWER_IS_BETTER = ("LogLoss",)


@dataclass(frozen=True)
class Metric:
    """A metric at a depth: `NDCG@10` has family "NDCG" and k 10; of a metric without depth k is 0."""

    name: str
    family: str
    k: int


def metric_problem(name: str) -> str | None:
    """Returns what is wrong with a metric's name, or None."""
    if name in LABEL_METRICS:
        return None
    family, at, depth = name.partition("@")
    if family not in METRICS:
        return unknown_name("metric", name, [*(f"{known}@10" for known in METRICS), *LABEL_METRICS])
    if not at or not depth.isdigit() or int(depth) < 1:
        return f"metric {name!r} needs a depth of at least 1, for example {family}@10"
    return None


def parse_metrics(names: Iterable[str]) -> tuple[Metric, ...]:
    """Returns the metrics of names such as "NDCG@10".

    Raises:
        TrainingError: a name is unknown or has no depth.
    """
    parsed = []
    for name in names:
        problem = metric_problem(name)
        if problem:
            raise TrainingError(problem)
        family, _, depth = name.partition("@")
        parsed.append(Metric(name, family, int(depth or 0)))
    return tuple(parsed)


def protocol_problem(protocol: str, names: Iterable[str]) -> str | None:
    """Returns what is wrong with measuring these metrics under a protocol (one of `PROTOCOLS`), or None."""
    strangers = [name for name in names if (name in LABEL_METRICS) != (protocol == "labelled")]
    if not strangers:
        return None
    allowed = ", ".join(LABEL_METRICS) if protocol == "labelled" else ", ".join(f"{family}@k" for family in METRICS)
    return f"protocol {protocol!r} does not measure {', '.join(strangers)}; it measures {allowed}"
