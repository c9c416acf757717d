"""What stands behind the rows: the splits, the lists that trials recommended, and the texts, read once a report.

It is read from the artifacts beside the results folder. Where they are not there, as after copying the folder alone, the
report is made without what needs them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.user_types import item_kinds, item_popularity
from llmkt_ray.errors import LlmktError
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.report.cells import Cell, Runs
from llmkt_ray.report.findings import profiles_of
from llmkt_ray.report.load import Results, row_files
from llmkt_ray.results.ledger import Ledger

TITLES = ("title", "movie_title", "name", "item_name", "product_title")
"""Columns of an item table that may hold what people call an item, the first that exists."""
Lists = tuple[np.ndarray, np.ndarray]
"""Indices of the evaluated users int32 `(n,)`, and their lists int32 `(n, k)`, best first."""


@dataclass(frozen=True)
class Split:
    """A split and what measures need of it, computed once."""

    data: PreparedData

    @cached_property
    def popularity(self) -> np.ndarray:
        """See `item_popularity`."""
        return item_popularity(self.data)

    @cached_property
    def kinds(self) -> tuple[csr_array, tuple[str, ...]]:
        """See `item_kinds`."""
        return item_kinds(self.data)

    @cached_property
    def n_train_users(self) -> int:
        """Users with a train positive."""
        return len(np.unique(self.data.train.positives().user))

    @cached_property
    def liked_popularity(self) -> np.ndarray:
        """Mean popularity of each user's train positives, float64 `(n_users,)`, NaN without one."""
        rows = self.data.train.positives()
        counts = np.bincount(rows.user, minlength=self.data.n_users)
        sums = np.bincount(rows.user, weights=self.popularity[rows.item], minlength=self.data.n_users)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    @cached_property
    def train_rows(self) -> np.ndarray:
        """Number of each user's train rows, int64 `(n_users,)`."""
        return np.bincount(self.data.train.user, minlength=self.data.n_users)

    @cached_property
    def _test(self) -> tuple[np.ndarray, np.ndarray]:
        rows = self.data.test.positives()
        order = np.argsort(rows.user, kind="stable")
        return rows.user[order], rows.item[order]

    def liked_in_test(self, user: int) -> set[int]:
        """Returns the items that a user likes in test: what a list was to find."""
        first, last = np.searchsorted(self._test[0], [user, user + 1])
        return set(self._test[1][first:last].tolist())

    @cached_property
    def titles(self) -> np.ndarray:
        """What people call each item, str `(n_items,)`; its raw id where the dataset does not say."""
        items, tokens = self.data.items, self.data.item_tokens
        name = next((name for name in TITLES if name in items.column_names), None)
        if name is None:
            return tokens
        return np.asarray([str(t or i) for t, i in zip(items.column(name).to_pylist(), tokens, strict=True)], dtype=object)


@dataclass
class Context:
    """The artifacts behind a study's rows.

    Attributes:
        results: the rows.
        artifacts: the artifact store; None: the folder `artifacts` beside the results folder.
    """

    results: Results
    artifacts: ArtifactStore | None = None
    _splits: dict[str, Split | None] = field(default_factory=dict)
    _texts: dict[str, Mapping[str, str]] = field(default_factory=dict)
    _of_cells: dict[tuple[str, str, str], Mapping[str, str]] = field(default_factory=dict)

    @cached_property
    def store(self) -> ArtifactStore:
        """Where the artifacts are looked for."""
        return self.artifacts or ArtifactStore(self.results.folder.absolute().parent / "artifacts")

    def split(self, key: str) -> Split | None:
        """Returns a split, None where its artifact is not to be had."""
        if key not in self._splits:
            try:
                self._splits[key] = Split(PreparedData.load(self.store, key))
            except (LlmktError, OSError, KeyError):
                self._splits[key] = None  # the page is about the rows; without the artifacts it is made without what needs them
        return self._splits[key]

    def split_of(self, runs: Runs, repetition: int = 0) -> Split | None:
        """Returns the split of an arm's trials of one repetition, None where it has none or the artifact is not to be had."""
        row = next((row for (r, _), row in runs.rows.items() if r == repetition), None)
        return None if row is None else self.split(str(self.results.trials["split_key"].iloc[row]))

    def texts(self, cell: Cell, split_key: str) -> Mapping[str, str]:
        """Returns raw user id to profile text of a cell's profiles on one split; empty where they are not to be had."""
        at = str(cell.factors["llm"]), str(cell.factors["dataset"]), split_key
        if at not in self._of_cells:
            found: dict[str, str] = {}
            for entry in profiles_of(self.results, cell):
                if entry.get("split_key") in (None, split_key):
                    found.update(self._text_of(str(entry.get("key"))))
            self._of_cells[at] = found
        return self._of_cells[at]

    def _text_of(self, key: str) -> Mapping[str, str]:
        if key not in self._texts:
            try:
                self._texts[key] = dict(zip(*Profiles.load(self.store, key).texts(), strict=True))
            except (LlmktError, OSError, KeyError):
                self._texts[key] = {}
        return self._texts[key]

    def lists(self, keys: Iterable[str]) -> Iterator[tuple[str, Lists]]:
        """Yields (trial key, lists) of the trials that recommended something, as they come; one is in memory at a time."""
        wanted = set(keys)
        columns = ["trial_key", "user:user", "recommended", "recommended_k"]
        for file in row_files(Ledger(self.results.folder), self.results.damaged) if wanted else ():
            if not set(columns) <= set(file.columns):
                continue
            for table in file.read(columns, wanted):
                for key, users, items, k in zip(*(table.column(name) for name in columns), strict=True):
                    if key.as_py() in wanted and items.is_valid and users.is_valid:
                        wanted.discard(key.as_py())
                        flat = items.values.to_numpy(zero_copy_only=False)
                        yield key.as_py(), (users.values.to_numpy(zero_copy_only=False), flat.reshape(-1, k.as_py()))
