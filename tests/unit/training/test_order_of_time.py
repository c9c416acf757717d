"""Sequential models refuse any split in which a user's train rows come after a held-out one, whatever the split is called."""

import dataclasses

import numpy as np
import pytest

from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.training.bridge.sequences import check_order
from tests.unit.training.conftest import make_data


def at(rows: Rows, time: float) -> Rows:
    return dataclasses.replace(rows, timestamp=np.full(len(rows), time))


def split_of(kind: str, train: float, valid: float, test: float) -> PreparedData:
    data = make_data()
    return dataclasses.replace(
        data,
        notes={"split": {"kind": kind}},
        train=at(data.train, train),
        valid=at(data.valid, valid),
        test=at(data.test, test),
    )


@pytest.mark.parametrize("kind", ["column", "time", "leave_one_out"])
@pytest.mark.parametrize("times", [(1, 2, 3), (1, 1, 1), (1, 3, 2)])
def test_train_before_held_out_is_accepted(kind: str, times: tuple[int, int, int]) -> None:
    check_order(split_of(kind, *times))


@pytest.mark.parametrize("times", [(2, 1, 3), (2, 3, 1)])
def test_a_column_split_that_is_not_in_order_is_refused(times: tuple[int, int, int]) -> None:
    with pytest.raises(TrainingError, match=r"split.kind 'column' of dataset 'synthetic' has .* has one at 2 and a held-out row at 1"):
        check_order(split_of("column", *times))


def test_one_row_of_one_user_is_enough() -> None:
    data = split_of("column", 1, 2, 2)
    times = data.train.timestamp.copy()
    row = int(np.flatnonzero(data.train.positive & (data.train.user == 5))[0])
    times[row] = 3
    with pytest.raises(TrainingError, match="1 train rows after a held-out row of the same user, of 1 users: 'u005' has one at 3"):
        check_order(dataclasses.replace(data, train=dataclasses.replace(data.train, timestamp=times)))
