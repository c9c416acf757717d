"""A row that is recorded again wins over what was compacted before."""

import dataclasses

import pytest

from llmkt_ray.report.load import load
from llmkt_ray.results.ledger import PARTS, Ledger
from tests.unit.results.test_ledger import make_result


def again(index, value):
    result = make_result(index)
    epochs = ({"epoch": 1, "phase": 1, "loss_model": value},)
    return dataclasses.replace(result, test={"NDCG@10": value}, users={**result.users, "NDCG@10": [value, value]}, epochs=epochs)


def assert_value(folder, result, value):
    ledger = Ledger(folder)
    trials = ledger.trials().set_index("trial_key")
    assert len(trials) == 3
    assert trials.loc[result.spec.key, "test_NDCG@10"] == value
    assert ledger.users(result.spec.key)["NDCG@10"].tolist() == [value, value]
    epochs = ledger.epochs()
    assert epochs.loc[epochs["trial_key"] == result.spec.key, "loss_model"].tolist() == [value]
    shown = load(folder)
    assert shown.epochs.loc[shown.epochs["trial_key"] == result.spec.key, "loss_model"].tolist() == [value]
    assert shown.user_values("NDCG@10")[result.spec.key][1].tolist() == pytest.approx([value, value])


def test_a_row_recorded_again_wins_over_a_part_and_later_parts_over_earlier_ones(tmp_path):
    ledger = Ledger(tmp_path)
    for index in range(3):
        ledger.record(make_result(index), "study")
    assert ledger.compact(1) == 3
    for value in (9.0, 8.0, 7.0):
        Ledger(tmp_path).record(again(1, value), "study")
        assert_value(tmp_path, make_result(1), value)
        assert Ledger(tmp_path).compact(1) == 1
        assert_value(tmp_path, make_result(1), value)
    assert len(list((tmp_path / PARTS).glob("*.parquet"))) == 2, "a part of the very same trials is replaced"
