"""Repetitions of a split must be different splits, or be refused or marked."""

import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.check import dataset_problems
from llmkt_ray.data.split import prepare
from llmkt_ray.errors import DatasetError
from tests.unit.data.conftest import MakeDataset
from tests.unit.data.test_check import GOOD, changed

GIVEN = changed(split=["train", "train", "train", "valid", "valid", "test"] * 5, rating=[5.0] * 30)


def test_a_given_validation_part_leaves_nothing_to_repeat(make_dataset: MakeDataset, store: ArtifactStore) -> None:
    config = make_dataset(GIVEN, split={"kind": "column", "repetitions": 4})
    (problem,) = dataset_problems(config)
    assert "4 repetitions would be the same split every time; set split.repetitions to 1" in problem
    with pytest.raises(DatasetError, match="the same split every time"):
        prepare(config, study_seed=1, store=store)
    assert dataset_problems(make_dataset(GIVEN, split={"kind": "column"}, folder="once")) == []


def test_validation_by_chance_can_be_repeated(make_dataset: MakeDataset) -> None:
    assert dataset_problems(make_dataset(GOOD, split={"kind": "column", "repetitions": 4})) == []


def test_repeated_leave_one_out_says_that_it_is_no_replicate(make_dataset: MakeDataset, store: ArtifactStore) -> None:
    config = make_dataset(GOOD, split={"kind": "leave_one_out", "repetitions": 2})
    warnings = [prepare(config, study_seed=1, repetition=at, store=store).notes["warnings"] for at in (0, 1)]
    assert not any("replicate" in text for text in warnings[0])  # type: ignore[attr-defined]
    assert any("repetition 1 of leave_one_out" in text and "no independent replicate" in text for text in warnings[1])  # type: ignore[attr-defined]
