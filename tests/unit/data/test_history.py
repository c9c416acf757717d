"""Histories come from train rows and from nothing else."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.history import histories
from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.data.split import prepare
from llmkt_ray.study import DatasetConfig
from tests.unit.data.conftest import MakeDataset

Ratings = dict[str, list[Any]]


class Sealed(Rows):
    """Rows that cannot be looked at."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"held-out rows were looked at: {name}")


def test_held_out_rows_are_never_looked_at(ratings: Ratings, make_dataset: MakeDataset, store: ArtifactStore) -> None:
    data = prepare(make_dataset(ratings), study_seed=1, store=store, train_share=0.5)
    sealed = replace(data, valid=Sealed(), test=Sealed())
    for full in (False, True):
        assert list(histories(sealed, full=full)) == list(histories(data, full=full))


@given(seed=st.integers(0, 1000), kind=st.sampled_from(["random", "leave_one_out", "time"]), user_min=st.integers(1, 9), share=st.floats(0.05, 1))
def test_a_history_is_exactly_the_users_train_rows(seed: int, kind: str, user_min: int, share: float, tmp_path_factory: Any) -> None:
    from llmkt_ray.data.catalog import load_raw  # noqa: PLC0415
    from llmkt_ray.data.split import compute_split  # noqa: PLC0415

    config = DatasetConfig(name="ml-100k", filters={"user_min": user_min * 40}, split={"kind": kind})  # type: ignore[arg-type]
    del tmp_path_factory
    arrays, tables, facts = compute_split(load_raw(config), config, seed, 0, share)

    def rows(part: str) -> Rows:
        return Rows(*(arrays[f"{part}_{column}"] for column in ("user", "item", "rating", "timestamp", "positive")))

    data = PreparedData(
        "k", "n", "movies", np.array(tables["users"]["user_id"].to_pylist()), np.array(tables["items"]["item_id"].to_pylist()),
        rows("train").where(arrays["train_kept"]), rows("train"), rows("valid"), rows("test"), tables["users"], tables["items"], facts["notes"],
    )  # fmt: skip
    told = histories(data)
    users, items = told.pairs()
    pairs = set(zip(users.tolist(), items.tolist(), strict=True))
    held_out = {pair for part in (data.valid, data.test) for pair in zip(part.user.tolist(), part.item.tolist(), strict=True)}
    assert pairs == set(zip(data.train.user.tolist(), data.train.item.tolist(), strict=True))
    assert not pairs & held_out
    assert len(users) == len(data.train)
