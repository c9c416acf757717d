"""Amazon review dumps: reviews as JSON lines or rating tables as CSV, and product metadata as JSON lines.

Formats of the releases of 2014, 2018 and 2023 (McAuley et al., 2015, doi 10.1145/2766462.2767755; Ni et al., 2019; Hou et al., 2024).
"""

import ast
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson

from llmkt_ray.data.raw import Tables, number_column, shown
from llmkt_ray.errors import DatasetError

_REVIEW_COLUMNS = {
    "user_id": ("reviewerID", "user_id"),
    "item_id": ("parent_asin", "asin", "item_id"),
    "rating": ("overall", "rating"),
    "timestamp": ("unixReviewTime", "timestamp"),
}
"""Our column to the releases' names for it, the first that is there."""

_REVIEW_TYPES = {
    **dict.fromkeys(("reviewerID", "user_id", "parent_asin", "asin", "item_id"), pa.string()),
    **dict.fromkeys(("overall", "rating"), pa.float64()),
    **dict.fromkeys(("unixReviewTime", "timestamp"), pa.int64()),
}
_ASIN = r"^(B[0-9A-Z]{9}|[0-9]{9}[0-9X])$"
_META_ID = re.compile(r"""["'](parent_asin|asin)["']\s*:\s*["']([^"']+)["']""")
_MILLISECONDS = 1e11  # as seconds this is the year 5138, as milliseconds 1973


def amazon_files(folder: Path) -> dict[str, tuple[Path, ...]] | None:
    """Returns the review file of a folder and, where it is there, its `meta_*` file; None where there are no reviews.

    Raises:
        DatasetError: several files could be the reviews, or the metadata.
    """
    suffixes = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".csv.gz")
    found = sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(suffixes) and path.name != "manifest.json")
    roles = {
        "interactions": tuple(path for path in found if not path.name.startswith("meta_")),
        "items": tuple(path for path in found if path.name.startswith("meta_")),
    }
    if not roles["interactions"]:
        return None
    for role, paths in roles.items():
        if len(paths) > 1:
            raise DatasetError(f"{folder} holds {len(paths)} files that could be the {role} ({shown(p.name for p in paths)}); keep one")
    return {role: paths for role, paths in roles.items() if paths}


def read_amazon(files: dict[str, tuple[Path, ...]]) -> Tables:
    """Reads reviews and metadata. Of several reviews of one item by one user the latest is kept: the 2018 release repeats many.

    Raises:
        DatasetError: a file is not what the releases hold.
    """
    path = files["interactions"][0]
    try:
        table = _read_csv(path) if ".csv" in path.suffixes else _read_json(path)
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DatasetError(f"{path} cannot be read as Amazon reviews: {shown([error])}; download it anew") from error
    table = _in_seconds(table)
    warnings = []
    if {"user_id", "item_id", "timestamp"} <= set(table.column_names):
        table, dropped = _latest_of_repeated(table)
        if dropped:
            warnings.append(
                f"{dropped:,} reviews of an item that the same user reviewed again were left out; the latest of each pair is kept"
            )
    items = None
    if "items" in files and "item_id" in table.column_names:
        items = _read_metadata(files["items"][0], set(pc.unique(table.column("item_id")).to_pylist()))
    return Tables(interactions=table, items=items, warnings=tuple(warnings))


def _read_json(path: Path) -> pa.Table:
    """Reads JSON lines; text of the reviews is never parsed into the table."""
    with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
        table = pajson.read_json(
            stream,
            read_options=pajson.ReadOptions(block_size=1 << 24),
            parse_options=pajson.ParseOptions(explicit_schema=pa.schema(_REVIEW_TYPES.items()), unexpected_field_behavior="ignore"),
        )
    columns = {}
    for name, sources in _REVIEW_COLUMNS.items():
        source = next((s for s in sources if table.column(s).null_count < len(table)), None)
        if source is not None:
            columns[name] = table.column(source)
    return pa.table(columns)


def _read_csv(path: Path) -> pa.Table:
    """Reads a rating table: with a header since 2023, without one before, when user and item also changed places between releases."""
    with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
        first = stream.read(4096).decode("utf-8").partition("\n")[0].strip().split(",")
    headed = "user_id" in first
    names = first if headed else ["user_id", "item_id", "rating", "timestamp"]
    table = pacsv.read_csv(
        str(path),
        read_options=pacsv.ReadOptions(column_names=names, skip_rows=1 if headed else 0),
        convert_options=pacsv.ConvertOptions(column_types={n: pa.string() for n in names}),
    )
    if headed:
        found = {name: next((s for s in sources if s in names), None) for name, sources in _REVIEW_COLUMNS.items()}
        return pa.table({name: table.column(source) for name, source in found.items() if source})
    head = table.slice(0, 1000)
    asins = [sum(pc.match_substring_regex(head.column(name), _ASIN).to_pylist()) for name in ("user_id", "item_id")]
    return table.rename_columns(["item_id", "user_id", "rating", "timestamp"]) if asins[0] > asins[1] else table


def _in_seconds(table: pa.Table) -> pa.Table:
    if "timestamp" not in table.column_names:
        return table
    seconds, _ = number_column(table.column("timestamp"))
    if seconds is None or (pc.max(seconds).as_py() or 0) < _MILLISECONDS:
        return table
    return table.set_column(table.column_names.index("timestamp"), "timestamp", pc.divide(seconds, 1000.0))


def _latest_of_repeated(table: pa.Table) -> tuple[pa.Table, int]:
    """Returns the rows without those whose pair of user and item comes again at the same time or later, in their order."""
    pairs = len(table.group_by(["user_id", "item_id"]).aggregate([]))
    if pairs == len(table):
        return table, 0
    numbered = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    by_time = numbered.sort_by([("timestamp", "ascending"), ("row", "ascending")])
    last = by_time.group_by(["user_id", "item_id"], use_threads=False).aggregate([("row", "last")])
    kept = pc.sort_indices(last.column("row_last"))
    return table.take(last.column("row_last").take(kept)), len(table) - pairs


def _read_metadata(path: Path, wanted: set[str]) -> pa.Table:
    """Returns what the metadata says about the items that were reviewed; lines that cannot be read are left out."""
    rows: dict[str, dict[str, Any]] = {}
    for line in _lines(path):
        found = dict(_META_ID.findall(line))
        item = found.get("parent_asin", found.get("asin"))
        if item in wanted and item not in rows and (content := _record(line)) is not None:
            rows[item] = content
    return pa.table(
        {
            "item_id": pa.array(list(rows), pa.string()),
            "title": pa.array([_plain(row.get("title")) for row in rows.values()], pa.string()),
            "creator": pa.array([_plain(row.get("brand") or row.get("store")) for row in rows.values()], pa.string()),
            "category": pa.array([_categories(row) for row in rows.values()], pa.list_(pa.string())),
            "description": pa.array([_plain(row.get("description")) for row in rows.values()], pa.string()),
        }
    )


def _lines(path: Path) -> Iterator[str]:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as stream:
                yield from stream
        else:
            with open(path, encoding="utf-8") as stream:
                yield from stream
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as Amazon metadata: {shown([error])}; download it anew") from error


def _record(line: str) -> dict[str, Any] | None:
    """Returns one line as a mapping. The 2014 metadata are Python literals, not JSON: read as literals, never evaluated."""
    try:
        content = json.loads(line)
    except ValueError:
        try:
            content = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return content if isinstance(content, dict) else None


def _plain(value: object) -> str | None:
    if isinstance(value, list):
        value = " ".join(part for part in value if isinstance(part, str))
    return value.strip() or None if isinstance(value, str) else None


def _categories(row: dict[str, Any]) -> list[str] | None:
    """Returns the categories without the root, which is the dataset itself."""
    value = row.get("categories") or row.get("category") or []
    paths = value if value and isinstance(value[0], list) else [value]
    names = dict.fromkeys(name.strip() for path in paths for name in path[1:] if isinstance(name, str) and name.strip())
    return list(names) or None
