"""RecBole's own way through a split: its files, Config, dataset, loaders, Trainer. What we are compared with, nothing of ours.

Only the shims of the bridge are shared, without which RecBole 1.2.0 does not run on current numpy at all.
"""

import functools
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.training.bridge import shims

shims.install()

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # noqa: E402

NAME = "frozen"
"""The dataset's name on RecBole's side: "ml-100k" would make it read its own bundled files."""


def positives_only(data: PreparedData) -> PreparedData:
    """The split with its positive rows alone: RecBole masks what is in its files, so both sides see the same rows."""
    train = data.train.positives()
    return replace(data, train=train, train_full=train, valid=data.valid.positives(), test=data.test.positives())


def write_atomic(data: PreparedData, folder: Path) -> None:
    """Writes the positives of a split as RecBole's pre-split atomic files `frozen.<part>.inter`."""
    target = folder / NAME
    target.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        kept = rows.positives()
        frame = pd.DataFrame({"user_id:token": data.user_tokens[kept.user], "item_id:token": data.item_tokens[kept.item]})
        frame.to_csv(target / f"{NAME}.{part}.inter", sep="\t", index=False)


@dataclass(frozen=True)
class RecBoleResult:
    """What RecBole reports of one run, and the seconds of each part (wall)."""

    test: Mapping[str, float]
    valid: float
    prepare_s: float
    fit_s: float
    test_s: float


@contextmanager
def _contained() -> Iterator[Path]:
    """RecBole reads the command line and writes into the working directory: both are replaced meanwhile."""
    argv, folder, load, state = sys.argv, Path.cwd(), torch.load, os.environ.get("CUDA_VISIBLE_DEVICES")
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own calls of deprecated APIs, hundreds of lines a model
        sys.argv = argv[:1]
        os.chdir(scratch)
        # Trainer.evaluate reads back its own checkpoint, which holds its Config; the file was written by this process.
        torch.load = functools.partial(load, weights_only=False)
        try:
            yield Path(scratch)
        finally:
            sys.argv, torch.load = argv, load
            os.chdir(folder)
            os.environ.pop("CUDA_VISIBLE_DEVICES", None) if state is None else os.environ.update(CUDA_VISIBLE_DEVICES=state)


def run_recbole(model: str, files: Path, *, seed: int, epochs: int, settings: Mapping[str, Any]) -> RecBoleResult:
    """Trains `model` by RecBole's Trainer on the files of `write_atomic` and tests its best validation epoch."""
    with _contained():
        started = time.perf_counter()
        values = {
            "data_path": str(files), "benchmark_filename": ["train", "valid", "test"], "load_col": {"inter": ["user_id", "item_id"]},
            "epochs": epochs, "stopping_step": 10 * epochs, "seed": seed, "reproducibility": True, "show_progress": False,
            "metrics": ["NDCG", "Recall", "Hit", "MRR"], "topk": [10], "valid_metric": "NDCG@10", "metric_decimal_place": 9,
            "eval_args": {"mode": "full", "order": "RO", "group_by": "user", "split": {"RS": [0.8, 0.1, 0.1]}},
        } | dict(settings)  # fmt: skip
        config = Config(model=model, dataset=NAME, config_dict=values)
        init_seed(seed, True)
        train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
        init_seed(seed, True)
        recommender = get_model(model)(config, train_data._dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], model)(config, recommender)
        prepared = time.perf_counter()
        valid, _ = trainer.fit(train_data, valid_data, verbose=False, show_progress=False)
        fitted = time.perf_counter()
        test = trainer.evaluate(test_data, load_best_model=True, show_progress=False)
        done = time.perf_counter()
    return RecBoleResult(
        {name.upper().replace("RECALL", "Recall").replace("HIT", "Hit"): float(value) for name, value in test.items()},
        float(valid), prepared - started, fitted - prepared, done - fitted,
    )  # fmt: skip
