"""The splits that speed is measured on: ml-100k, and a synthetic one of a million interactions that anybody can make."""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.recbole_side import positives_only
from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.data.split import prepare
from llmkt_ray.study import DatasetConfig


def ml_100k(store: Path) -> PreparedData:
    """The positives (rating >= 4) of ml-100k, random 70/10/20 per user."""
    config = DatasetConfig.model_validate({"name": "ml-100k", "positive": {"rating_at_least": 4}})
    return positives_only(prepare(config, study_seed=2026, store=ArtifactStore(store)))


@cache
def synthetic(n_interactions: int = 1_000_000, n_users: int = 6040, n_items: int = 3706, seed: int = 0) -> PreparedData:
    """A split with the sizes of ML-1M: long-tailed activity and popularity, every pair once, 80/10/10."""
    rng = np.random.default_rng(seed)
    activity, popularity = rng.pareto(1.5, n_users) + 0.3, 1.0 / np.arange(1, n_items + 1) ** 0.7
    keys = np.empty(0, dtype=np.int64)
    while len(keys) < n_interactions:
        users = rng.choice(n_users, n_interactions, p=activity / activity.sum())
        items = rng.choice(n_items, n_interactions, p=popularity / popularity.sum())
        keys = np.unique(np.concatenate([keys, users.astype(np.int64) * n_items + items]))
    keys = np.sort(rng.permutation(keys)[:n_interactions])
    part = rng.choice(3, n_interactions, p=(0.8, 0.1, 0.1))

    def rows(number: int) -> Rows:
        kept = keys[part == number]
        ones = np.ones(len(kept), dtype=np.float32)
        return Rows((kept // n_items).astype(np.int32), (kept % n_items).astype(np.int32), ones, ones.astype(np.float64), ones > 0)

    user_tokens, item_tokens = (np.asarray([f"{prefix}{i}" for i in range(n)]) for prefix, n in (("u", n_users), ("i", n_items)))
    return PreparedData(
        key=f"synthetic-{n_interactions}", name=f"synthetic-{n_interactions}", domain="generic", user_tokens=user_tokens,
        item_tokens=item_tokens, train=rows(0), train_full=rows(0), valid=rows(1), test=rows(2),
        users=pa.table({"user_id": user_tokens}), items=pa.table({"item_id": item_tokens}), notes={},
    )  # fmt: skip
