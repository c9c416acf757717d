"""Histories come from train rows and from nothing else."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.history import Histories, histories
from llmkt_ray.data.leaks import verify
from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.data.raw import RawDataset
from llmkt_ray.data.split import compute_split, prepare
from llmkt_ray.errors import DatasetError
from llmkt_ray.study import DatasetConfig
from tests.unit.data.conftest import MakeDataset

Ratings = dict[str, list[Any]]


class Sealed(Rows):
    """Rows that cannot be looked at."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"held-out rows were looked at: {name}")


@pytest.mark.parametrize("full", [False, True])
def test_held_out_rows_are_never_looked_at(full: bool, ratings: Ratings, make_dataset: MakeDataset, store: ArtifactStore) -> None:
    data = prepare(make_dataset(ratings), study_seed=1, store=store, train_share=0.5)
    sealed = replace(data, valid=Sealed(), test=Sealed())
    assert list(histories(sealed, full=full)) == list(histories(data, full=full))


@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=30, max_size=60, unique=True),
    kind=st.sampled_from(["random", "leave_one_out", "time", "column"]),
    user_min=st.integers(1, 4),
    item_min=st.integers(1, 2),
    share=st.floats(0.05, 1),
    seed=st.integers(0, 99),
)
def test_whatever_the_split_and_filter_a_history_is_exactly_the_users_train_rows(
    pairs: list[tuple[int, int]], kind: str, user_min: int, item_min: int, share: float, seed: int
) -> None:
    users, items = [f"u{u}" for u, _ in pairs], [f"i{i}" for _, i in pairs]
    marks = ["test" if (u + i) % 3 == 0 else "train" for u, i in pairs]
    times = [float((u * 7 + i * 3) % 5) for u, i in pairs]
    config = DatasetConfig.model_validate({"name": "any", "filters": {"user_min": user_min, "item_min": item_min}, "split": {"kind": kind}})
    table = pa.table({"user_id": users, "item_id": items, "timestamp": times, "split": marks})
    nothing = (pa.table({"item_id": pa.array([], pa.string())}), pa.table({"user_id": pa.array([], pa.string())}))
    try:
        arrays, tables, facts = compute_split(RawDataset("any", "generic", table, *nothing, "digest", ()), config, seed, 0, share)
    except DatasetError:
        assume(False)
    data = PreparedData.assemble("key", arrays, tables["users"], tables["items"], facts)
    for full, train in ((False, data.train), (True, data.train_full)):
        told = {(u, entry.item.item_id) for u, entries in histories(data, full=full) for entry in entries}
        assert told == set(zip(data.user_tokens[train.user], data.item_tokens[train.item], strict=True))
        assert told <= set(zip(users, items, strict=True))
        certificate = verify(data, *histories(data, full=full).pairs())
        assert (certificate.status, certificate.pairs, certificate.leaks, certificate.foreign) == ("verified", len(train), 0, 0)
    if kind == "column":
        assert told <= {pair for pair, mark in zip(zip(users, items, strict=True), marks, strict=True) if mark == "train"}


@pytest.fixture
def told(make_dataset: MakeDataset, store: ArtifactStore) -> Histories:
    config = make_dataset(
        {
            "user_id": list("aaaabbbbcc"),
            "item_id": list("wxyzwxyzwx"),
            "rating": [1, 2, 3, 4, 5, 4, 3, 2, 5, 5],
            "timestamp": [30, 20, 10, 40, 1, 2, 3, 4, 1, 2],
            "split": ["train", "train", "train", "test", "train", "train", "valid", "test", "test", "test"],
        },
        items={
            "item_id": ["w", "x"],
            "title": ["<b>W</b>", None],
            "genre": ["Drama|War", None],
            "author": ["Ann", ""],
            "overview": ["About.", None],
        },
        split={"kind": "column"},
    )
    return histories(prepare(config, study_seed=1, store=store))


def test_entries_carry_what_is_known_oldest_first(told: Histories) -> None:
    entries = told.of(0)
    assert [(e.item.item_id, e.rating, e.timestamp) for e in entries] == [("y", 3.0, 10.0), ("x", 2.0, 20.0), ("w", 1.0, 30.0)]
    known = entries[2].item
    assert (known.title, known.genres, known.creator, known.description) == ("<b>W</b>", ("Drama", "War"), "Ann", "About.")
    assert (known.year, known.category) == (None, ())
    assert (entries[1].item.title, entries[1].item.genres, entries[1].item.creator) == (None, (), None)


def test_users_without_a_history_are_named(told: Histories) -> None:
    assert told.user_tokens[told.without()].tolist() == ["c"]
    assert told.of(2) == ()
    assert told.sizes().tolist() == [3, 2, 0]
    assert [token for token, _ in told] == ["a", "b", "c"]


def test_without_ratings_and_times_entries_say_so_and_keep_the_order_of_the_source(make_dataset: MakeDataset, store: ArtifactStore) -> None:
    config = make_dataset({"user_id": ["a"] * 5, "item_id": list("zyxwv"), "split": ["train"] * 3 + ["test"] * 2}, split={"kind": "column"})
    entries = histories(prepare(config, study_seed=1, store=store)).of(0)
    assert [e.item.item_id for e in entries] == ["z", "y", "x"]
    assert {(e.rating, e.timestamp) for e in entries} == {(None, None)}


def test_indices_are_those_of_the_split(ratings: Ratings, make_dataset: MakeDataset, store: ArtifactStore) -> None:
    data = prepare(make_dataset(ratings), study_seed=1, store=store)
    for _, entries in histories(data):
        assert [e.item.item_id for e in entries] == data.item_tokens[np.array([e.index for e in entries])].tolist()
