"""The leak certificate finds what is held out, and believes a manifest only about this split."""

from typing import Any

import numpy as np
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.history import histories
from llmkt_ray.data.leaks import UNKNOWN, declare, verify
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.split import prepare
from llmkt_ray.errors import ProfileError
from tests.unit.data.conftest import MakeDataset


@pytest.fixture
def data(ratings: dict[str, list[Any]], make_dataset: MakeDataset, store: ArtifactStore) -> PreparedData:
    return prepare(make_dataset(ratings), study_seed=1, store=store, train_share=0.5)


def test_train_histories_are_verified(data: PreparedData) -> None:
    for full, rows in ((False, data.train), (True, data.train_full)):
        certificate = verify(data, *histories(data, full=full).pairs())
        assert (certificate.status, certificate.pairs, certificate.leaks) == ("verified", len(rows), 0)
        assert certificate.allows_verdict


@pytest.mark.parametrize("part", ["valid", "test"])
def test_one_held_out_pair_among_many_is_found(data: PreparedData, part: str) -> None:
    held_out = {"valid": data.valid, "test": data.test}[part]
    users, items = histories(data).pairs()
    certificate = verify(data, np.append(users, held_out.user[-1]), np.append(items, held_out.item[-1]))
    assert (certificate.status, certificate.leaks) == ("leaked", 1)
    assert not certificate.allows_verdict


def test_trap_04_profiles_of_all_ratings_leak_as_many_pairs_as_are_held_out(data: PreparedData) -> None:
    rows = (data.train_full, data.valid, data.test)
    users, items = np.concatenate([r.user for r in rows]), np.concatenate([r.item for r in rows])
    assert verify(data, np.tile(users, 2), np.tile(items, 2)).leaks == len(data.valid) + len(data.test)


def test_pairs_that_no_part_holds_are_counted_apart(data: PreparedData) -> None:
    mine = {*data.train_full.item[data.train_full.user == 0], *data.valid.item[data.valid.user == 0], *data.test.item[data.test.user == 0]}
    other = next(item for item in range(data.n_items) if item not in mine)
    certificate = verify(data, np.array([0]), np.array([other]))
    assert (certificate.status, certificate.foreign) == ("verified", 1)


@pytest.mark.parametrize(("users", "items"), [([0, 1], [0]), ([-1], [0]), ([10_000], [0]), ([0], [10_000]), ([0], [-1])])
def test_a_check_of_something_else_is_refused(data: PreparedData, users: list[int], items: list[int]) -> None:
    with pytest.raises(ProfileError, match="leak check"):
        verify(data, np.array(users), np.array(items))


def test_a_manifest_is_believed_about_this_split_only(data: PreparedData) -> None:
    assert declare(data, data.key).status == "declared"
    assert declare(data, str(data.notes["train_digest"])).allows_verdict
    assert declare(data, None) is UNKNOWN
    assert not UNKNOWN.allows_verdict
    for other in ("0" * 20, "column", ""):
        with pytest.raises(ProfileError, match=data.key):
            declare(data, other)


def test_profiles_of_the_datasets_own_column_are_declared_for_every_seed(
    ratings: dict[str, list[Any]], make_dataset: MakeDataset, store: ArtifactStore
) -> None:
    marked = {**ratings, "split": ["test" if k % 4 == 0 else "train" for k in range(len(ratings["user_id"]))]}
    config = make_dataset(marked, split={"kind": "column"})
    one, two = (prepare(config, study_seed=seed, store=store) for seed in (1, 2))
    assert not np.array_equal(one.valid.item, two.valid.item)
    assert one.notes["train_digest"] == two.notes["train_digest"]
    assert declare(two, str(one.notes["train_digest"])).status == declare(two, "column").status == "declared"
    with pytest.raises(ProfileError):
        declare(two, one.key)
