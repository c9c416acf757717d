"""What a report is made from: the rows, the epochs and per-user values of a study's ledger, and its card."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from llmkt_ray.errors import StorageError
from llmkt_ray.results.card import read_card
from llmkt_ray.results.ledger import PARTS, TRIALS, Ledger

UserValues = tuple[np.ndarray, np.ndarray]
"""Indices of the evaluated users int32 `(n,)`, ascending, and their values float32 `(n,)`."""


@dataclass
class Results:
    """The results of one study.

    Attributes:
        folder: where they are.
        card: the study's card, an empty mapping where a run has not written it yet.
        trials: one row a trial; failed trials and references included.
        epochs: one row a trial and epoch.
        metric: the metric that selected, for example "NDCG@10": the report's main one.
        metrics: all of the study, the main one first.
        damaged: files that could not be read.
    """

    folder: Path
    card: dict[str, Any]
    trials: pd.DataFrame
    epochs: pd.DataFrame
    metric: str
    metrics: tuple[str, ...]
    damaged: tuple[str, ...] = ()
    _users: dict[str, dict[str, UserValues]] = field(default_factory=dict)

    @property
    def study(self) -> dict[str, Any]:
        """The study file as run, as JSON values."""
        return dict(self.card.get("study") or {})

    @property
    def smallest_effect(self) -> float:
        """Smallest effect of interest, relative."""
        return float(self.study.get("evaluation", {}).get("smallest_effect", 0.02))

    @property
    def claim_alpha(self) -> float:
        """The prespecified alpha of the claim."""
        return float(self.study.get("transfer", {}).get("claim_alpha", 0.5))

    def user_values(self, metric: str) -> dict[str, UserValues]:
        """Returns the per-user test values of every finished trial, by trial key."""
        if metric not in self._users:
            self._users[metric] = dict(_user_values(Ledger(self.folder), metric))
        return self._users[metric]


def load(folder: Path) -> Results:
    """Reads a results folder, whole or partial.

    Raises:
        StorageError: there is neither a row nor a card, or a file was written by a later version.
    """
    ledger = Ledger(folder)
    trials, card = ledger.trials(), read_card(folder) or {}
    if trials.empty and not card:
        raise StorageError(f"there are no results in {folder}: neither a ledger nor a card; run: llmkt run STUDY")
    metric, metrics = _metrics(trials, card)
    for name in metrics:
        for column in (f"valid_{name}", f"test_{name}"):
            if column not in trials:
                trials[column] = np.nan
    return Results(folder, card, trials, _epochs(ledger), metric, metrics, ledger.damaged)


def _metrics(trials: pd.DataFrame, card: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    evaluation = (card.get("study") or {}).get("evaluation")
    if evaluation is None and "spec" in trials and len(trials):
        evaluation = json.loads(trials["spec"].iloc[0])
    if evaluation is None:
        return "NDCG@10", ("NDCG@10",)
    main = str(evaluation["select_on"])
    return main, (main, *(str(m) for m in evaluation["metrics"] if m != main))


def _files(ledger: Ledger) -> Iterator[pq.ParquetFile]:
    """Yields every readable file of a ledger, each read once; several are fetched at a time."""

    def fetch(name: str) -> pq.ParquetFile | None:
        data = ledger.files.read_bytes(name)
        try:
            return None if data is None else pq.ParquetFile(pa.BufferReader(data))
        except (pa.ArrowInvalid, OSError):
            return None

    names = [name for name in ledger.files.list("ledger", recursive=True) if name.startswith((TRIALS, PARTS)) and name.endswith(".parquet")]
    with ThreadPoolExecutor(4) as pool:
        yield from (file for file in pool.map(fetch, names) if file is not None)


def _user_values(ledger: Ledger, metric: str) -> Iterator[tuple[str, UserValues]]:
    wanted = ["trial_key", "user:user", f"user:{metric}"]
    for file in _files(ledger):
        if not set(wanted) <= set(file.schema_arrow.names):
            continue
        table = file.read(columns=wanted)
        for key, users, values in zip(*(table.column(name) for name in wanted), strict=True):
            if users.is_valid and values.is_valid:
                index = users.values.to_numpy(zero_copy_only=False)
                yield key.as_py(), (index, values.values.to_numpy(zero_copy_only=False).astype(np.float32))


def _epochs(ledger: Ledger) -> pd.DataFrame:
    frames: list[pd.DataFrame] = []
    seen: set[str] = set()
    for file in _files(ledger):
        names = [name for name in file.schema_arrow.names if name.startswith("epoch:")]
        if not names:
            continue
        table = file.read(columns=["trial_key", *names])
        keys = table.column("trial_key").to_pylist()
        for row, key in enumerate(keys):
            if key in seen:
                continue
            seen.add(key)
            lists = {name.partition(":")[2]: table.column(name)[row] for name in names}
            columns = {name: value.values.to_numpy(zero_copy_only=False) for name, value in lists.items() if value.is_valid}
            if columns:
                frames.append(pd.DataFrame({"trial_key": key, **columns}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"trial_key": [], "epoch": [], "phase": []})
