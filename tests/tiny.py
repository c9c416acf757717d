"""A tiny dataset with structure and studies on it, for the tests of the sweep: seconds from the split to the last row."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmkt_ray.study import StudyConfig
from llmkt_ray.study_file import parse_study

USERS, ITEMS, TASTES = 60, 40, 4


def write_dataset(folder: Path) -> Path:
    """Writes users who like items of their own taste, with titles, genres, ratings and timestamps."""
    generator = np.random.default_rng(3)
    users, items, ratings = [], [], []
    for user in range(USERS):
        liked = generator.random(ITEMS) < np.where(np.arange(ITEMS) % TASTES == user % TASTES, 0.8, 0.15)
        for item in np.flatnonzero(liked):
            users.append(f"u{user}")
            items.append(f"i{item}")
            ratings.append(float(5 if item % TASTES == user % TASTES else 3))
    folder.mkdir(parents=True, exist_ok=True)
    times = generator.permutation(len(users)).astype(np.float64)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "rating": ratings, "timestamp": times}), folder / "interactions.parquet")
    names = [f"i{item}" for item in range(ITEMS)]
    genres = [["drama", "comedy", "horror", "western"][item % TASTES] for item in range(ITEMS)]
    pq.write_table(pa.table({"item_id": names, "title": [f"Title {n}" for n in names], "genres": genres}), folder / "items.parquet")
    pq.write_table(pa.table({"user_id": [f"u{user}" for user in range(USERS)]}), folder / "users.parquet")
    return folder


STUDY = """
name: tiny
seed: 11
datasets:
  - {{name: toy, path: {dataset}, split: {{kind: random, ratios: [0.6, 0.2, 0.2]}}}}
embedding: {{encoder: tfidf_svd, dims: 20}}
reduction: {{method: pca}}
models:
  - {{name: BPR, epochs: 4, batch_size: 256, hyperparameters: {{embedding_size: 8}}}}
transfer: {{alphas: [0.3, 0.5]}}
controls: [baseline, alpha0, shuffled]
training: {{evaluate_every: 1}}
seeds: 1
evaluation: {{references: [Pop]}}
storage: {storage}
"""


def study_text(root: Path) -> str:
    """Returns the text of a study of six trials on the tiny dataset, its results below `root`."""
    return STUDY.format(dataset=write_dataset(root / "toy"), storage=root / "results")


def tiny_study(root: Path, **changes: object) -> StudyConfig:
    """Returns the tiny study with sections replaced."""
    study = parse_study(study_text(root))
    return StudyConfig.model_validate({**study.model_dump(), **changes})
