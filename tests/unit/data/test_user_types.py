from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.history import histories
from llmkt_ray.data.user_types import OTHERS, demographics, item_kinds, item_popularity, thirds, user_types
from tests.films import film_split


@pytest.fixture
def data(tmp_path):
    return film_split(tmp_path / "films", ArtifactStore(tmp_path / "store"))


def test_types_are_what_their_definitions_say(data):
    found = {kind.name: kind.values for kind in user_types(data)}
    assert set(found) == {"activity", "popularity affinity", "genre entropy", "recency"}
    past, popularity = histories(data), item_popularity(data)
    for user in (0, 7, 39):
        entries = past.of(user)
        positives = data.train.positives()
        liked = positives.item[positives.user == user]
        assert found["activity"][user] == len(entries)
        assert found["popularity affinity"][user] == pytest.approx(popularity[liked].mean())
        assert found["recency"][user] == max(entry.timestamp for entry in entries)
        _, counts = np.unique([genre for entry in entries for genre in entry.item.genres], return_counts=True)
        share = counts / counts.sum()
        assert found["genre entropy"][user] == pytest.approx(-(share * np.log2(share)).sum())


def test_creators_stand_for_kinds_where_there_is_nothing_else_and_a_catalogue_may_have_many(data):
    names = pa.array([f"Maker {item}" for item in range(data.n_items)])
    made = replace(data, items=data.items.select(["item_id"]).append_column("creator", names))
    kinds, found = item_kinds(made)
    assert kinds.shape == (data.n_items, data.n_items)
    assert kinds.nnz == data.n_items, "what is not there takes no memory"
    assert [found[at] for at in kinds.indices[:3]] == ["Maker 0", "Maker 1", "Maker 2"]
    entropy = {kind.name: kind.values for kind in user_types(made)}["genre entropy"]
    rows = np.bincount(data.train.user, minlength=data.n_users)
    np.testing.assert_allclose(entropy[rows > 0], np.log2(rows[rows > 0]), atol=1e-9)


def test_what_the_dataset_does_not_know_is_left_out(data):
    bare = replace(data, items=data.items.select(["item_id"]), train=replace(data.train, timestamp=np.full(len(data.train), np.nan)))
    assert [kind.name for kind in user_types(bare)] == ["activity", "popularity affinity"]


def test_types_never_look_at_held_out_rows(data):
    empty = data.test.where(np.zeros(len(data.test), dtype=bool))
    for one, other in zip(user_types(data), user_types(replace(data, test=empty, valid=empty)), strict=True):
        assert np.array_equal(one.values, other.values, equal_nan=True)


def test_thirds_keep_ties_together():
    values = np.asarray([1, 1, 1, 1, 2, 3, 4, 5, np.nan])
    found = thirds(values, np.arange(9))
    assert found.tolist() == [0, 0, 0, 0, 1, 2, 2, 2, -1]
    assert thirds(np.ones(5), np.arange(5)).tolist() == [0] * 5
    assert thirds(values, np.asarray([8])).tolist() == [-1]


def test_demographics_are_the_datasets_own_groups(data):
    n = data.n_users
    users = pa.table(
        {
            "user_id": data.user_tokens.tolist(),
            "gender": ["F" if u % 2 else "M" for u in range(n - 1)] + [None],
            "age": [str(18 + u) for u in range(n)],
            "occupation": [f"job {min(u, 15)}" for u in range(n)],
            "zip": [f"{u:05d}" if u else "" for u in range(n)],
            "constant": ["x"] * n,
        }
    )
    found = demographics(replace(data, users=users))
    assert set(found) == {"gender", "occupation"}  # ages are as many as users here, and so are zip codes
    assert sorted(set(found["gender"].tolist())) == ["", "F", "M"]
    assert OTHERS in found["occupation"]
    assert "job 15" in found["occupation"]
    years = users.set_column(2, "age", pa.array([str(18 + u % 15) for u in range(n)]))
    assert sorted(set(demographics(replace(data, users=years))["age"].tolist())) == ["18 to 22", "23 to 26", "27 to 32"]
