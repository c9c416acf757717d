"""Small datasets on disk, made of plain columns."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.study import DatasetConfig

Columns = Mapping[str, Sequence[Any]]
MakeDataset = Callable[..., DatasetConfig]

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    return SHARED


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Writes a Parquet dataset and returns its config; keyword arguments beside the tables are of `DatasetConfig`."""

    def make(interactions: Columns, items: Columns | None = None, users: Columns | None = None, **config: Any) -> DatasetConfig:
        folder = tmp_path / config.pop("folder", "dataset")
        folder.mkdir(exist_ok=True)
        for name, columns in {"interactions": interactions, "items": items, "users": users}.items():
            if columns is not None:
                pq.write_table(pa.table(dict(columns)), folder / f"{name}.parquet")
        return DatasetConfig(**{"name": "tiny", "path": str(folder), **config})

    return make


@pytest.fixture
def ratings() -> dict[str, list[Any]]:
    """Interactions of 30 users with 40 items, 3 to 20 a user, in a mixed order; ratings 1 to 5 and times with ties."""
    rng = np.random.default_rng(7)
    pairs = [(u, i) for u in range(30) for i in rng.choice(40, size=int(rng.integers(3, 21)), replace=False)]
    rng.shuffle(pairs)
    return {
        "user_id": [f"u{u}" for u, _ in pairs],
        "item_id": [f"i{i}" for _, i in pairs],
        "rating": [float(r) for r in rng.integers(1, 6, size=len(pairs))],
        "timestamp": [int(t) for t in rng.integers(1_000_000, 1_000_060, size=len(pairs))],
    }
