"""A small film dataset on disk with a split column, and its prepared split: for tests of profiles and embeddings."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.split import prepare
from llmkt_ray.study import DatasetConfig

GENRES = ("Drama", "Comedy", "Horror", "Western", "Sci-Fi", "Romance")
N_ITEMS = 60
HELD_OUT = {3, 4, 8, 12, 16, 20, 24}
"""Places in a user's history that are test; the first five are of the loved genre."""


def film_dataset(folder: Path, n_users: int = 40, *, domain: str = "movies", split: str = "column") -> DatasetConfig:
    """Writes interactions (ratings, times, a split column) and films; user u loves genre u % 6 and hates the next."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(n_users):
        loved = np.arange(user % len(GENRES), N_ITEMS, len(GENRES))
        others = rng.permutation(np.setdiff1d(np.arange(N_ITEMS), loved))[: int(rng.integers(9, 24))]
        for place, item in enumerate([*rng.permutation(loved)[:5], *others]):
            rating = {0: 5.0, 1: 1.0}.get((int(item) - user) % len(GENRES), 3.0)
            rows.append((f"u{user:02d}", f"i{item:02d}", rating, 1000 + place, "test" if place in HELD_OUT else "train"))
    folder.mkdir(parents=True, exist_ok=True)
    names = ("user_id", "item_id", "rating", "timestamp", "split")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), folder / "interactions.parquet")
    films = {
        "item_id": [f"i{item:02d}" for item in range(N_ITEMS)],
        "title": [f"Film Number {item} ({1950 + item})" for item in range(N_ITEMS)],
        "genres": [GENRES[item % len(GENRES)] for item in range(N_ITEMS)],
    }
    pq.write_table(pa.table(films), folder / "items.parquet")
    return DatasetConfig(name="films", path=str(folder), domain=domain, positive={"rating_at_least": 4}, split={"kind": split})


def film_split(folder: Path, store: ArtifactStore, n_users: int = 40, *, seed: int = 1, **options: str) -> PreparedData:
    """Returns the prepared split of `film_dataset`."""
    return prepare(film_dataset(folder, n_users, **options), study_seed=seed, store=store)
