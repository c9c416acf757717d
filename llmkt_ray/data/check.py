"""Every problem of a dataset at once, as complete sentences with the value and the remedy, before anything expensive starts."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmkt_ray.data.assign import PART_NAMES, TEST, TRAIN, VALID, divide
from llmkt_ray.data.catalog import read_raw
from llmkt_ray.data.encode import Encoded, encode, filtered
from llmkt_ray.data.raw import RawDataset, shown
from llmkt_ray.study import DatasetConfig


def dataset_problems(config: DatasetConfig) -> list[str]:
    """Returns every problem of a dataset and of the rules that the study applies to it; an empty list means it can be used.

    The data is read, filtered and divided as for a run, with some seed; nothing is written.
    """
    raw, problems = read_raw(config)
    if raw is None:
        return problems
    if {"user_id", "item_id"} <= set(raw.interactions.column_names):
        problems += table_problems(raw, config)
    if problems:
        return problems
    rows = filtered(encode(raw.interactions), config.filters)
    return part_problems(rows, config, divide(rows, config.split, rows.positive(config.positive), seed=0))


def table_problems(raw: RawDataset, config: DatasetConfig) -> list[str]:
    """Returns the problems of the rows as they were read, and of rules that need a column which is not there."""
    table, start = raw.interactions, f"dataset {config.name!r}: "
    if not len(table):
        return [f"{start}the interactions have no rows; check the file"]
    problems = _id_problems(table) + _number_problems(table) + _rule_problems(table, config)
    return [start + problem for problem in problems]


def part_problems(rows: Encoded, config: DatasetConfig, parts: np.ndarray) -> list[str]:
    """Returns the problems of a divided dataset: parts without rows or without positives."""
    start = f"dataset {config.name!r}: "
    if not len(rows):
        rule = config.filters
        return [
            f"{start}no interaction is left after the filters user_min {rule.user_min}, user_max {rule.user_max}, "
            f"item_min {rule.item_min}; loosen them"
        ]
    positive, problems = rows.positive(config.positive), []
    for part, name in ((TRAIN, "train"), (VALID, "validation"), (TEST, "test")):
        count, good = int((parts == part).sum()), int((positive & (parts == part)).sum())
        if not good:
            have = f"{count} rows, none of them a positive" if count else "no rows"
            problems.append(
                f"{start}the {config.split.kind} split of {len(rows)} interactions gives {name} {have}; "
                "choose other ratios, another kind of split, weaker filters or a lower `rating_at_least`"
            )
    return problems


def _id_problems(table: pa.Table) -> list[str]:
    problems = []
    for name in ("user_id", "item_id"):
        column = table.column(name)
        empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
        if count := pc.sum(empty).as_py():
            problems.append(f"{name} is empty in {count} of {len(table)} rows, {_first(empty)}; delete these rows or fill in the id")
        nul = pc.fill_null(pc.match_substring(column, "\0"), False)
        if count := pc.sum(nul).as_py():
            problems.append(f"{name} holds a NUL character in {count} rows, {_first(nul)}; ids must be plain text")
    if problems:
        return problems
    encoded = encode(table.select(["user_id", "item_id"]))
    pairs = encoded.pair_keys()
    order = np.argsort(pairs, kind="stable")
    again = order[1:][pairs[order][1:] == pairs[order][:-1]]
    if len(again):
        row = int(again.min())
        pair = f"user {table.column('user_id')[row].as_py()[:60]!r} and item {table.column('item_id')[row].as_py()[:60]!r}"
        problems.append(
            f"{len(again)} rows repeat a pair of user and item, the first is row {row + 1} ({pair}); "
            "keep one row a pair, for example the latest, and how often in a column `count`: otherwise an item could be both train and test"
        )
    return problems


def _number_problems(table: pa.Table) -> list[str]:
    problems = []
    for name in ("rating", "timestamp", "count"):
        if name in table.column_names:
            column = table.column(name)
            right = pc.and_(pc.is_finite(column), pc.greater(column, 0)) if name == "count" else pc.is_finite(column)
            bad = pc.invert(pc.fill_null(right, False))
            if count := pc.sum(bad).as_py():
                values = shown(pc.unique(column.filter(bad)).slice(0, 3).to_pylist())
                kind = "positive" if name == "count" else "finite"
                problems.append(
                    f"{name} is not a {kind} number in {count} of {len(table)} rows ({values}), {_first(bad)}; mend or delete these rows"
                )
    return problems


def _rule_problems(table: pa.Table, config: DatasetConfig) -> list[str]:
    problems = []
    names, smallest = table.column_names, config.positive.rating_at_least
    if smallest is not None and "rating" not in names:
        problems.append(
            f"the positive rule is rating_at_least {smallest:g}, but the interactions have only {', '.join(names)}; "
            "drop the rule: then every interaction is a positive"
        )
    elif smallest is not None and (largest := pc.max(table.column("rating")).as_py()) is not None and largest < np.float32(smallest):
        problems.append(f"no rating reaches rating_at_least {smallest:g}, the largest is {largest:g}; choose a smaller value")
    kind = config.split.kind
    if kind in ("leave_one_out", "time") and "timestamp" not in names:
        problems.append(
            f"split kind {kind!r} needs timestamps, but the interactions have only {', '.join(names)}; use kind 'random' or add them"
        )
    if kind == "column":
        problems += _column_problems(table, config.split.repetitions)
    return problems


def _column_problems(table: pa.Table, repetitions: int) -> list[str]:
    if "split" not in table.column_names:
        return [
            f"split kind 'column' needs a column `split`, but the interactions have only {', '.join(table.column_names)}; "
            "add it with the values train, valid and test, or use kind 'random'"
        ]
    found = pc.unique(table.column("split")).to_pylist()
    problems = []
    if unknown := [value for value in found if value not in PART_NAMES]:
        problems.append(f"column `split` holds {shown(unknown)}; allowed are 'train', 'valid' and 'test'; rename or delete these rows")
    for part in ("train", "test"):
        if part not in found:
            problems.append(f"column `split` marks no row as {part!r}; it holds {shown(found)}; mark some rows, or use kind 'random'")
    if "valid" in found and repetitions > 1:
        problems.append(
            f"column `split` gives train, validation and test, so that {repetitions} repetitions would be the same split every time; "
            "set split.repetitions to 1, or leave validation to chance by marking no row as 'valid'"
        )
    return problems


def _first(mask: pa.ChunkedArray) -> str:
    """Says where a mask is first true, counting rows from 1."""
    return f"first in row {pc.index(mask, True).as_py() + 1}"
