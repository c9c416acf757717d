"""What a report is made from: the rows, the epochs and per-user values of a study's ledger, and its card."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmkt_ray.errors import StorageError
from llmkt_ray.results.card import read_card
from llmkt_ray.results.ledger import DAMAGE, Ledger
from llmkt_ray.results.once import freezing
from llmkt_ray.training.metrics import LOWER_IS_BETTER

UserValues = tuple[np.ndarray, np.ndarray]
"""Indices of the evaluated users who have a value int32 `(n,)`, ascending, and their values float32 `(n,)`."""


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
        damaged: files of which something could not be read; grows as more is read.
    """

    folder: Path
    card: dict[str, Any]
    trials: pd.DataFrame
    epochs: pd.DataFrame
    metric: str
    metrics: tuple[str, ...]
    damaged: set[str] = field(default_factory=set)
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

    def sign(self, metric: str | None = None) -> float:
        """Returns 1, or -1 where less of the metric (the main one, if none is given) is better: more of `sign * value` is better."""
        return -1.0 if (metric or self.metric) in LOWER_IS_BETTER else 1.0

    @property
    def direction(self) -> str:
        """Which direction of the main metric is better, in words."""
        return "lower is better" if self.sign() < 0 else "higher is better"

    @property
    def gain(self) -> str:
        """What a gain in the main metric is, in words."""
        return f"Gain in test {self.metric}" + (" (its decrease: lower is better)" if self.sign() < 0 else "")

    @property
    def labelled(self) -> bool:
        """Whether labelled rows were evaluated: then a trial's AUC is one over all rows, and each user has one of their own."""
        return (self.study.get("evaluation") or {}).get("protocol") == "labelled"

    @property
    def compares(self) -> str:
        """What selects and what is compared, where the two differ, as a sentence with a space before it; empty where they do not."""
        if not self.labelled:
            return ""
        if self.metric == "GAUC":
            return " GAUC, which weighs users by their positives, selects; what is compared is the mean of the users' own AUC."
        return f" {self.metric} over all rows selects; what is compared is the mean of the users' own {self.metric}."

    @cached_property
    def tested(self) -> pd.Series:
        """The test value of each trial that is compared, in the main metric: the mean of its users' own values."""
        column = self.trials[f"test_{self.metric}"].astype(float)
        if not self.labelled:  # the row's own number is that mean
            return column
        values = self.user_values(self.metric)
        own = [values[key][1].mean(dtype=np.float64) if key in values and len(values[key][1]) else np.nan for key in self.keys]
        return pd.Series(own, index=column.index).fillna(column)

    def user_values(self, metric: str) -> dict[str, UserValues]:
        """Returns the per-user test values of every finished trial, by trial key."""
        if metric not in self._users:
            self._users[metric] = dict(_user_values(Ledger(self.folder), metric, None, self.damaged))
        return self._users[metric]

    @cached_property
    def keys(self) -> np.ndarray:
        """Trial keys in the order of `trials`, as Python strings."""
        return np.asarray(self.trials["trial_key"].to_numpy(dtype=object))

    @cached_property
    def references(self) -> pd.DataFrame:
        """The finished rows of the reference models."""
        return self.trials[(self.trials["arm"] == "reference") & (self.trials["status"] == "done")]

    def load_user_values(self, metrics: Iterable[str], wanted: set[str]) -> None:
        """Makes the values of some trials available for metrics that are not loaded yet: all that a table of a few cells needs."""
        for metric in metrics:
            if metric not in self._users:
                self._users[metric] = dict(_user_values(Ledger(self.folder), metric, wanted, self.damaged))

    @cached_property
    def epochs_by_trial(self) -> dict[str, pd.DataFrame]:
        """Trial key to its rows of `epochs`."""
        keys = self.epochs["trial_key"].to_numpy()
        if not len(keys):
            return {}
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        return {str(keys[a]): self.epochs.iloc[a:b] for a, b in zip(starts, [*starts[1:], len(keys)], strict=True)}


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
    if "spec" in trials:
        trials["freeze"] = trials["spec"].map(freezing)
    damaged = set(ledger.damaged)
    return Results(folder, card, trials, _epochs(ledger, damaged), metric, metrics, damaged)


def _metrics(trials: pd.DataFrame, card: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    evaluation = (card.get("study") or {}).get("evaluation")
    if evaluation is None and "spec" in trials and len(trials):
        evaluation = json.loads(trials["spec"].iloc[0])
    if evaluation is None:
        return "NDCG@10", ("NDCG@10",)
    main = str(evaluation["select_on"])
    return main, (main, *(str(m) for m in evaluation["metrics"] if m != main))


class RowFile:
    """A file of a ledger that is read in parts, each checked against its checksum.

    Attributes:
        columns: names of its columns.
    """

    def __init__(self, name: str, file: pq.ParquetFile, damaged: set[str]) -> None:
        self._name, self._file, self._damaged = name, file, damaged
        self.columns: list[str] = file.schema_arrow.names

    def read(self, columns: Sequence[str] | None = None, wanted: set[str] | None = None) -> Iterator[pa.Table]:
        """Yields the row groups with at least one of the wanted trials (None: all); of those that cannot be read the name is noted.

        Args:
            columns: what is read; None: all.
            wanted: keys of trials.
        """
        for group in range(self._file.num_row_groups):
            try:
                if wanted is not None:
                    keys = self._file.read_row_group(group, columns=["trial_key"]).column("trial_key").to_pylist()
                    if wanted.isdisjoint(keys):
                        continue
                table = self._file.read_row_group(group, columns=columns)
            except DAMAGE:
                self._damaged.add(self._name)
            else:
                yield table


def row_files(ledger: Ledger, damaged: set[str]) -> Iterator[RowFile]:
    """Yields every file of a ledger, each fetched once, later rows of a trial first; several are fetched at a time.

    Args:
        ledger: the ledger.
        damaged: takes the names of files of which something cannot be read, here or later.
    """

    def fetch(name: str) -> RowFile | None:
        data = ledger.files.read_bytes(name)
        try:
            return None if data is None else RowFile(name, pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True), damaged)
        except DAMAGE:
            damaged.add(name)
            return None

    with ThreadPoolExecutor(4) as pool:
        yield from (file for file in pool.map(fetch, ledger.row_files()) if file is not None)


def _user_values(ledger: Ledger, metric: str, wanted: set[str] | None, damaged: set[str]) -> Iterator[tuple[str, UserValues]]:
    """Yields (trial key, values) of the trials in `wanted`, of all where it is None; row groups of others are not read."""
    columns = ["trial_key", "user:user", f"user:{metric}"]
    seen: set[str] = set()
    for file in row_files(ledger, damaged):
        if not set(columns) <= set(file.columns):
            continue
        for table in file.read(columns, wanted):
            for key, users, values in zip(*(table.column(name) for name in columns), strict=True):
                if users.is_valid and values.is_valid and (wanted is None or key.as_py() in wanted) and key.as_py() not in seen:
                    seen.add(key.as_py())
                    index, found = (column.values.to_numpy(zero_copy_only=False) for column in (users, values))
                    known = np.isfinite(found)  # AUC is not defined for a user with one kind of test rows: the same users in all trials
                    yield key.as_py(), (index[known], found[known].astype(np.float32))


def _epochs(ledger: Ledger, damaged: set[str]) -> pd.DataFrame:
    """Returns one row a trial and epoch; the rows of a trial stand together."""
    frames: list[pd.DataFrame] = []
    seen: set[str] = set()
    for file in row_files(ledger, damaged):
        names = [name for name in file.columns if name.startswith("epoch:")]
        groups = list(file.read(["trial_key", *names])) if "epoch:epoch" in names else []
        if not groups:
            continue
        table = pa.concat_tables(groups).combine_chunks()
        table = table.filter(pa.array([key not in seen for key in table.column("trial_key").to_pylist()]))
        table = table.filter(pc.is_valid(table.column("epoch:epoch")))
        lengths = pc.list_value_length(table.column("epoch:epoch")).to_numpy()
        keys = table.column("trial_key").to_pylist()
        seen.update(keys)
        columns = {"trial_key": np.repeat(np.array(keys, dtype=object), lengths)}
        for name in names:
            columns[name.partition(":")[2]] = _flat(table.column(name), lengths)
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"trial_key": [], "epoch": [], "phase": []})


def _flat(column: pa.ChunkedArray, lengths: np.ndarray) -> np.ndarray:
    """Returns a column of lists as one array; a trial without this list counts as NaN throughout."""
    present = column.is_valid().to_numpy()
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if present.all():
        return np.asarray(values)
    out = np.full(int(lengths.sum()), np.nan)
    out[np.repeat(present, lengths)] = values
    return out
