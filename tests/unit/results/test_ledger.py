import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from llmkt_ray.errors import StorageError
from llmkt_ray.results import rows
from llmkt_ray.results.ledger import PARTS, TRIALS, Ledger
from llmkt_ray.training.spec import TrialResult, TrialSpec


def make_spec(index: int = 0, **changes: object) -> TrialSpec:
    values = {
        "study_seed": 1, "dataset": "toy", "split_key": "s", "model": "BPR", "epochs": 2, "batch_size": 8, "learning_rate": 0.01,
        "arm": "treated", "alpha": 0.5, "layer": "user_embedding", "targets_key": "t", "metrics": ("NDCG@10", "Hit@10"),
        "select_on": "NDCG@10", "seed_index": index,
        "factors": {"llm": "template", "dims": 8, "train_share": 1.0, "split_repetition": 0},
    }  # fmt: skip
    return TrialSpec(**(values | changes))


def make_result(index: int = 0) -> TrialResult:
    return TrialResult(
        spec=make_spec(index),
        status="done",
        valid={"NDCG@10": 0.1 + index, "Hit@10": 0.2},
        test={"NDCG@10": 1 / 3 + index, "Hit@10": 0.4},
        best_epoch=2,
        converged=False,
        epochs=(
            {"epoch": 1, "phase": 1, "loss_model": 0.7, "loss_transfer": 1.5, "valid_NDCG@10": float("nan"), "duration_s": 0.1},
            {"epoch": 2, "phase": 2, "loss_model": 0.5, "loss_transfer": float("nan"), "valid_NDCG@10": 0.1, "duration_s": 0.2},
        ),
        users={"user": np.array([3, 1], dtype=np.int32), "NDCG@10": np.array([0.25, 1 / 3])},
        recommended=np.arange(20, dtype=np.int32).reshape(2, 10),
        facts={"beta": np.float32(2.5), "ratio": float("nan"), "train_wall_s": 1.25},
        measures={"wall_s": 1.5, "peak_rss_bytes": 2**33, "host": "here", "versions": {"torch": "2"}},
    )


def make_failure(index: int) -> TrialResult:
    error = {"kind": "ValueError", "message": "no", "traceback": "Traceback ..."}
    return TrialResult(spec=make_spec(index), status="failed", error=error)


def test_a_row_comes_back_as_it_was_written(tmp_path):
    ledger, result = Ledger(tmp_path), make_result()
    ledger.record(result, "study")
    (row,) = ledger.trials().to_dict("records")
    assert row["trial_key"] == result.spec.key
    assert (row["test_NDCG@10"], row["valid_NDCG@10"], row["best_epoch"], row["converged"]) == (1 / 3, 0.1, 2, False)
    assert (row["llm"], row["dims"], row["train_share"], row["arm"], row["alpha"]) == ("template", 8, 1.0, "treated", 0.5)
    assert (row["schedule"], row["switch"], row["handover"], row["optimizer"]) == ("two_phase", 0.5, "last", "reset")
    assert row["facts"] == '{"beta":2.5,"ratio":null}'
    assert TrialSpec.model_validate_json(row["spec"]) == result.spec
    epochs = ledger.epochs()
    assert epochs["epoch"].tolist() == [1, 2]
    assert np.isnan(epochs["valid_NDCG@10"][0])
    assert epochs["phase"].dtype == np.int32
    users = ledger.users(result.spec.key)
    assert users["user"].tolist() == [3, 1]
    assert users["NDCG@10"].tolist() == [0.25, 1 / 3]
    np.testing.assert_array_equal(ledger.recommended(result.spec.key), result.recommended)


def test_what_differs_between_equal_runs_stands_in_measurement_columns_only(tmp_path):
    Ledger(tmp_path).record(make_result(), "study")
    row = Ledger(tmp_path).trials().iloc[0]
    assert row["timings"] == '{"train_wall_s":1.25}'
    assert {"timings", "wall_s", "finished_at"} <= set(rows.MEASUREMENT_COLUMNS)


def test_a_failed_trial_is_a_row_with_kind_message_and_traceback(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.record(make_failure(1), "study")
    row = ledger.trials().iloc[0]
    assert (row["status"], row["error_kind"], row["error_message"]) == ("failed", "ValueError", "no")
    assert row["error_traceback"].startswith("Traceback")
    assert ledger.done() == {make_spec(1).key}
    assert ledger.users(make_spec(1).key).empty
    assert ledger.recommended(make_spec(1).key).shape == (0, 0)
    assert ledger.epochs().empty


def test_compaction_changes_nothing_that_is_read(tmp_path):
    ledger = Ledger(tmp_path)
    for index in range(5):
        ledger.record(make_result(index), "study")
    ledger.record(make_failure(9), "study")
    before, epochs, users = ledger.trials(), ledger.epochs(), ledger.users(make_spec(3).key)
    assert ledger.compact(at_least=6) == 0, "five done rows are fewer than six"
    assert ledger.compact(at_least=5) == 5
    assert len(ledger.files.list(TRIALS)) == 1, "the failed row stays a file of its own"
    for reader in (ledger, Ledger(tmp_path)):
        pd.testing.assert_frame_equal(reader.trials(), before, check_dtype=False)
        pd.testing.assert_frame_equal(reader.epochs(), epochs)
        pd.testing.assert_frame_equal(reader.users(make_spec(3).key), users)
        np.testing.assert_array_equal(reader.recommended(make_spec(3).key), make_result(3).recommended)


def test_the_epochs_of_some_trials_open_the_files_of_no_other(tmp_path, monkeypatch):
    """Who looks every few seconds for what is new reads no row twice."""
    ledger = Ledger(tmp_path)
    for index in range(4):
        ledger.record(make_result(index), "study")
        if index == 1:
            ledger.compact(2)
    opened, read = list[str](), Ledger._open
    monkeypatch.setattr(Ledger, "_open", lambda self, name: opened.append(name) or read(self, name))
    for wanted, files in (({3}, 1), ({0, 2}, 2)):
        keys = {make_spec(index).key for index in wanted}
        ledger.trials()
        opened.clear()
        assert set(ledger.epochs(keys)["trial_key"]) == keys
        assert len(opened) == files
    assert len(ledger.epochs(set())) == 0


def test_a_crash_between_the_part_and_the_deletions_doubles_nothing(tmp_path):
    ledger = Ledger(tmp_path)
    for index in range(4):
        ledger.record(make_result(index), "study")
    saved = {name: ledger.files.read_bytes(name) for name in ledger.files.list(TRIALS)}
    ledger.compact(at_least=1)
    for name, data in saved.items():
        ledger.files.write_bytes(name, data)
    again = Ledger(tmp_path)
    assert len(again.trials()) == 4
    assert len(again.epochs()) == 8
    again.compact(at_least=1)
    assert len(Ledger(tmp_path).trials()) == 4


@pytest.mark.parametrize("damage", [b"", b"PAR1 not parquet", None])
def test_a_damaged_row_does_not_count_as_done(tmp_path, damage):
    ledger = Ledger(tmp_path)
    ledger.record(make_result(0), "study")
    ledger.record(make_result(1), "study")
    path = tmp_path / TRIALS / f"{make_spec(0).key}.parquet"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    reader = Ledger(tmp_path)
    assert reader.done() == {make_spec(1).key}
    assert reader.damaged == (f"{TRIALS}/{make_spec(0).key}.parquet",)
    reader.record(make_result(0), "study")
    assert reader.done() == {make_spec(0).key, make_spec(1).key}


def changed(path, column: str) -> None:
    """Changes a bit in the middle of what a column holds."""
    chunk = next(
        chunk
        for chunk in map(pq.ParquetFile(path).metadata.row_group(0).column, range(pq.ParquetFile(path).metadata.num_columns))
        if chunk.path_in_schema.startswith(column)
    )
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("column", ["valid_NDCG@10", "best_epoch", "model"])
def test_a_row_with_a_changed_bit_does_not_count_as_done(tmp_path, column):
    Ledger(tmp_path).record(make_result(), "study")
    (path,) = (tmp_path / TRIALS).iterdir()
    changed(path, column)
    reader = Ledger(tmp_path)
    assert reader.done() == set()
    assert reader.damaged == (f"{TRIALS}/{path.name}",)


@pytest.mark.parametrize(
    ("column", "look"),
    [
        ("user:NDCG@10", lambda ledger: ledger.users(make_spec().key)),
        ("epoch:loss_model", lambda ledger: ledger.curve(make_spec().key)),
        ("epoch:loss_model", lambda ledger: ledger.epochs()),
        ("recommended", lambda ledger: ledger.compact(at_least=1)),
    ],
)
def test_a_changed_bit_in_what_is_read_later_is_named_with_what_to_do(tmp_path, column, look):
    Ledger(tmp_path).record(make_result(), "study")
    (path,) = (tmp_path / TRIALS).iterdir()
    changed(path, column)
    with pytest.raises(StorageError, match=rf"{path.name} is damaged .*; delete it and run the study again: its trials run anew"):
        look(Ledger(tmp_path))


def test_a_row_of_a_later_ledger_is_refused(tmp_path):
    Ledger(tmp_path).record(make_result(), "study")
    (path,) = (tmp_path / TRIALS).iterdir()
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"llmkt_ledger": "99"}), path)
    with pytest.raises(StorageError, match=r"later ledger \(version 99, this one reads up to 1\); upgrade"):
        Ledger(tmp_path).trials()


def test_an_unknown_trial_is_named(tmp_path):
    with pytest.raises(StorageError, match="'feed' has no row"):
        Ledger(tmp_path).users("feed")


def test_an_empty_ledger_has_no_rows(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.done() == set()
    assert ledger.trials().empty
    assert ledger.epochs().empty
    assert ledger.compact() == 0
    assert not (tmp_path / PARTS).exists()


def test_labels_are_not_part_of_a_trial_key():
    assert make_spec(factors={}).key == make_spec().key
    assert make_spec(alpha=0.3).key != make_spec().key
