"""Types of users: by activity, popularity affinity, genre entropy and recency (METHOD.md, section 7, N1), and by demographic group.

All of it is computed from train rows; the demographic columns are the dataset's own.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array, csr_array

from llmkt_ray.data.history import item_facts, kinds_of
from llmkt_ray.data.prepared import PreparedData

THIRDS = ("low", "middle", "high")
MOST_GROUPS = 12
"""Demographic groups of one column at the most; smaller ones are put together."""
OTHERS = "all others"


@dataclass(frozen=True)
class UserType:
    """One way to tell users apart.

    Attributes:
        name: for example "activity".
        meaning: what it is, with its unit.
        values: float64 `(n_users,)`, NaN where it is not known.
    """

    name: str
    meaning: str
    values: np.ndarray


def item_popularity(data: PreparedData) -> np.ndarray:
    """Returns the share of users with a train positive who like each item, float64 `(n_items,)`, in [0, 1]."""
    positives = data.train.positives()
    return np.bincount(positives.item, minlength=data.n_items) / max(len(np.unique(positives.user)), 1)


def item_kinds(data: PreparedData) -> tuple[csr_array, tuple[str, ...]]:
    """Returns which kinds (genres, else categories, else creator) each item is of, sparse 0 or 1 `(n_items, kinds)`, and their names.

    Sparse, for creators can be a hundred thousand.
    """
    kinds = [sorted(set(kinds_of(item))) for item in item_facts(data.items)]
    names = tuple(sorted({kind for of_item in kinds for kind in of_item}))
    place = {name: at for at, name in enumerate(names)}
    at = np.array([place[kind] for of_item in kinds for kind in of_item], dtype=np.int64)
    ends = np.cumsum([0, *(len(of_item) for of_item in kinds)])
    return csr_array((np.ones(len(at)), at, ends), shape=(data.n_items, len(names))), names


def user_types(data: PreparedData) -> tuple[UserType, ...]:
    """Returns the types that the dataset holds data for."""
    train = data.train
    counts = np.bincount(train.user, minlength=data.n_users).astype(np.float64)
    known = counts > 0
    found = [
        UserType("activity", "train rows", np.where(known, counts, np.nan)),
        UserType("popularity affinity", "mean share of users who like the items that the user likes", _affinity(data)),
    ]
    kinds, names = item_kinds(data)
    if len(names) > 1:
        found.append(UserType("genre entropy", "bits, of the kinds of the user's train items", _entropy(data, kinds)))
    if not np.isnan(train.timestamp).any() and len(train):
        last = np.full(data.n_users, -np.inf)
        np.maximum.at(last, train.user, train.timestamp)
        found.append(UserType("recency", "time of the last train row", np.where(known, last, np.nan)))
    return tuple(found)


def thirds(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Returns in which third (0, 1, 2) of the given users each of them is, int8 `(n,)`; -1 where the value is not known.

    Ties stay together, so thirds may differ in size; where all values are equal everyone is in the first.

    Args:
        values: float64 `(n_users,)`.
        users: int `(n,)`, indices of the users who are divided.
    """
    mine = values[users]
    known = np.isfinite(mine)
    bounds = np.quantile(mine[known], [1 / 3, 2 / 3]) if known.any() else np.zeros(2)
    return np.where(known, np.searchsorted(bounds, mine, side="left"), -1).astype(np.int8)


def demographics(data: PreparedData) -> dict[str, np.ndarray]:
    """Returns column name to each user's group, str `(n_users,)`, empty where it is not known.

    Numbers with many values (age in years) become thirds; of texts the largest groups stay, the others are put together.
    Columns that name nearly every user apart (zip codes) are left out. The texts are the dataset's own and untrusted.
    """
    found = {}
    for name in data.users.column_names:
        column = data.users.column(name)
        if name == "user_id" or pa.types.is_nested(column.type):
            continue
        values = np.asarray(["" if v is None else str(v) for v in column.to_pylist()])
        groups, sizes = np.unique(values[values != ""], return_counts=True)
        if len(groups) < 2 or len(groups) > len(values) / 2:
            continue
        if len(groups) <= MOST_GROUPS:
            found[name] = values
            continue
        numbers = _numbers(values)
        if numbers is not None:
            found[name] = _ranges(numbers)
        else:
            kept = set(groups[np.argsort(-sizes, kind="stable")][: MOST_GROUPS - 1].tolist())
            found[name] = np.asarray([v if v == "" or v in kept else OTHERS for v in values.tolist()])
    return found


def _affinity(data: PreparedData) -> np.ndarray:
    positives = data.train.positives()
    sums = np.bincount(positives.user, weights=item_popularity(data)[positives.item], minlength=data.n_users)
    counts = np.bincount(positives.user, minlength=data.n_users)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _entropy(data: PreparedData, kinds: csr_array) -> np.ndarray:
    """Returns the Shannon entropy of the kinds of each user's train rows, bits."""
    train = data.train
    taken = coo_array((np.ones(len(train)), (train.user, train.item)), shape=(data.n_users, data.n_items)).tocsr()
    counts = taken @ kinds
    counts.sort_indices()
    total = counts.sum(axis=1)
    share = counts.data / np.repeat(total, np.diff(counts.indptr))
    entropy = np.bincount(counts.nonzero()[0], weights=-share * np.log2(share), minlength=data.n_users)
    return np.where(total > 0, entropy, np.nan)


def _numbers(values: np.ndarray) -> np.ndarray | None:
    """Returns the texts as numbers, NaN where empty; None where one is no number."""
    try:
        return np.asarray([float(v) if v else np.nan for v in values.tolist()])
    except ValueError:
        return None


def _ranges(numbers: np.ndarray) -> np.ndarray:
    """Returns thirds of numbers, named by their bounds."""
    third = thirds(numbers, np.arange(len(numbers)))
    names = {-1: ""}
    for at in np.unique(third[third >= 0]).tolist():
        mine = numbers[third == at]
        names[at] = f"{mine.min():g} to {mine.max():g}"
    return np.asarray([names[at] for at in third.tolist()])
