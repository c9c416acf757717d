"""Every problem of a dataset is told at once, with the value and the remedy."""

import re
from pathlib import Path
from typing import Any

import pytest

from llmkt_ray.data.check import dataset_problems
from llmkt_ray.study import DatasetConfig
from tests.unit.data.conftest import MakeDataset

GOOD: dict[str, list[Any]] = {
    "user_id": [u for u in "abcde" for _ in range(6)],
    "item_id": [i for _ in range(5) for i in "uvwxyz"],
    "rating": [1.0, 2.0, 3.0, 4.0, 5.0, 5.0] * 5,
    "timestamp": list(range(30)),
    "split": ["train", "train", "train", "train", "test", "test"] * 5,
}


def changed(**columns: list[Any]) -> dict[str, list[Any]]:
    return {**GOOD, **columns}


def without(*names: str) -> dict[str, list[Any]]:
    return {name: values for name, values in GOOD.items() if name not in names}


def with_value(column: str, row: int, value: Any) -> dict[str, list[Any]]:
    values = list(GOOD[column])
    values[row] = value
    return changed(**{column: values})


@pytest.mark.parametrize("kind", ["random", "leave_one_out", "time", "column"])
def test_good_data_have_no_problems(kind: str, make_dataset: MakeDataset) -> None:
    assert dataset_problems(make_dataset(GOOD, positive={"rating_at_least": 4}, split={"kind": kind})) == []


CASES: list[tuple[dict[str, list[Any]], dict[str, Any], str]] = [
    (without("user_id"), {}, r"no column 'user_id'; its columns are 'item_id', .*rename"),
    (changed(item_id=[0.5] * 30), {}, r"'item_id' .* holds double values, .*strings or whole numbers"),
    (with_value("user_id", 3, ""), {}, r"user_id is empty in 1 of 30 rows, first in row 4; delete"),
    (with_value("user_id", 3, "  "), {}, r"user_id is empty in 1 of 30 rows"),
    (with_value("item_id", 0, None), {}, r"item_id is empty in 1 of 30 rows, first in row 1"),
    (with_value("item_id", 5, "z\0"), {}, r"item_id holds a NUL character in 1 rows, first in row 6"),
    (with_value("item_id", 1, "u"), {}, r"1 rows repeat a pair of user and item, the first is row 2 \(user 'a' and item 'u'\); keep one"),
    (with_value("rating", 2, float("nan")), {}, r"rating is not a finite number in 1 of 30 rows \('nan'\), first in row 3"),
    (with_value("rating", 2, float("-inf")), {}, r"rating is not a finite number in 1 of 30 rows \('-inf'\)"),
    (with_value("rating", 2, None), {}, r"rating is not a finite number in 1 of 30 rows \('None'\)"),
    (with_value("timestamp", 9, None), {}, r"timestamp is not a finite number in 1 of 30 rows .*first in row 10"),
    (changed(plays=[3, 0, 1] * 10), {}, r"count is not a positive number in 10 of 30 rows \('0.0'\), first in row 2"),
    (changed(rating=["5", "four", "n/a"] * 10), {}, r"'rating' .* not numbers, for example 'four', 'n/a'"),
    (without("rating"), {"positive": {"rating_at_least": 4}}, r"rating_at_least 4, but the interactions have only .*drop"),
    (GOOD, {"positive": {"rating_at_least": 6}}, r"no rating reaches rating_at_least 6, the largest is 5; choose a smaller"),
    (without("timestamp"), {"split": {"kind": "leave_one_out"}}, r"'leave_one_out' needs timestamps, .*use kind 'random'"),
    (without("timestamp"), {"split": {"kind": "time"}}, r"'time' needs timestamps, .*use kind 'random'"),
    (without("split"), {"split": {"kind": "column"}}, r"needs a column `split`, .*train, valid and test"),
    (with_value("split", 0, "dev"), {"split": {"kind": "column"}}, r"column `split` holds 'dev'; allowed are 'train', 'valid' and 'test'"),
    (with_value("split", 0, None), {"split": {"kind": "column"}}, r"column `split` holds 'None'"),
    (changed(split=["train"] * 30), {"split": {"kind": "column"}}, r"marks no row as 'test'; it holds 'train'"),
    (changed(split=["test"] * 30), {"split": {"kind": "column"}}, r"marks no row as 'train'"),
    (changed(rating=[5.0] * 4 + [1.0] * 2 + [1.0] * 24), {"positive": {"rating_at_least": 4}, "split": {"kind": "column"}},
     r"column split of 30 interactions gives test \d+ rows, none of them a positive"),
    (changed(user_id=[f"u{k}" for k in range(30)]), {}, r"random split of 30 interactions gives test no rows; choose"),
    (GOOD, {"filters": {"user_min": 7}}, r"no interaction is left after the filters user_min 7, user_max None, item_min 1; loosen"),
    ({name: [] for name in GOOD}, {}, r"the interactions have no rows"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "config", "expected"), CASES, ids=[case[2][:40] for case in CASES])
def test_a_problem_names_the_value_and_the_remedy(
    columns: dict[str, list[Any]], config: dict[str, Any], expected: str, make_dataset: MakeDataset
) -> None:
    problems = dataset_problems(make_dataset(columns, **config))
    assert any(re.search(expected, problem) for problem in problems), problems
    assert all(problem.startswith("dataset 'tiny': ") for problem in problems)


def test_all_problems_come_at_once(make_dataset: MakeDataset) -> None:
    columns = changed(user_id=["", *GOOD["user_id"][1:]], rating=[float("inf"), *GOOD["rating"][1:]])
    problems = dataset_problems(
        make_dataset({n: v for n, v in columns.items() if n != "timestamp"}, positive={"rating_at_least": 4}, split={"kind": "time"})
    )
    assert [re.sub(r".*?: (\w+).*", r"\1", problem) for problem in problems] == ["user_id", "rating", "split"]
    none_of_the_ids = dataset_problems(make_dataset(without("user_id", "item_id"), folder="other"))
    assert len(none_of_the_ids) == 2


def test_a_name_that_is_not_known_gets_the_closest_ones() -> None:
    (problem,) = dataset_problems(DatasetConfig(name="ml100k"))
    assert "dataset 'ml100k' is not known; did you mean 'ml-100k'" in problem
    assert "`path`" in problem


@pytest.mark.parametrize("name", ["ml-1m", "amazon-cds"])
def test_a_known_dataset_that_is_not_here_asks_for_a_path(name: str) -> None:
    (problem,) = dataset_problems(DatasetConfig(name=name))
    assert re.search(
        rf"'{name}' is not part of any package; get it from https://\S+ and give its folder as `path`; .* should hold ", problem
    )


def test_a_folder_that_is_not_there_or_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "ml-1m").mkdir()
    (missing,) = dataset_problems(DatasetConfig(name="x", path=str(tmp_path / "ml1m")))
    assert "is not a folder" in missing
    assert "folders beside it: ml-1m" in missing
    (empty,) = dataset_problems(DatasetConfig(name="x", path=str(tmp_path / "ml-1m")))
    assert "holds no interactions; expected one of: interactions.parquet, <name>.inter, ratings.dat" in empty


@pytest.mark.parametrize("name", ["interactions.parquet", "any.inter", "ratings.dat", "reviews.json", "reviews.json.gz", "ratings.csv"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0garbage\x1b[31m\n\xff", b"a,b\n1\n"])
def test_a_broken_file_is_one_problem_without_raw_control_characters(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    problems = dataset_problems(DatasetConfig(name="x", path=str(tmp_path)))
    assert problems
    assert all("\x1b" not in problem and "\0" not in problem for problem in problems)


def test_untrusted_text_is_shown_escaped_and_short(make_dataset: MakeDataset) -> None:
    hostile = "\x1b[31m[bold]" + "x" * 500
    problems = dataset_problems(make_dataset({hostile: ["1"], "item_id": ["1"]}))
    assert len(problems) == 1
    assert "\x1b" not in problems[0]
    assert len(problems[0]) < 300


def test_an_items_table_without_ids_is_a_problem(make_dataset: MakeDataset) -> None:
    (problem,) = dataset_problems(make_dataset(GOOD, items={"title": ["x"]}))
    assert "items table has no column 'item_id'" in problem
