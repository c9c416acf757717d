"""What a reader of any format hands over: typed tables with string ids, and every problem met on the way."""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

COUNT_COLUMNS = ("count", "play_count", "playcount", "plays", "listen_count", "weight")
"""How often a user took an item, in implicit feedback: the first of these that is there (Last.fm of HetRec 2011 says weight)."""

_SHOWN = 3


@dataclass(frozen=True)
class Tables:
    """The tables of one source as its reader found them, columns already renamed to the project's names.

    Attributes:
        interactions: `user_id`, `item_id` and, where the source has them, `rating`, `timestamp`, a count (`COUNT_COLUMNS`), `split`.
        items, users: feature tables with `item_id` / `user_id`; None where the source has none.
        warnings: complete sentences about what the reader did that the user should know.
    """

    interactions: pa.Table
    items: pa.Table | None = None
    users: pa.Table | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its source gives it, before any rule of the study.

    Attributes:
        name: the dataset's name in the study.
        domain: "movies", "music", "books" or "generic".
        interactions: string `user_id`, `item_id`; float64 `rating`, `timestamp` (seconds) and `count`, string `split` where given.
        items, users: features with a string id column and the standard fields of `fields.py`; only the id column where the
            source has no features. At most one row an id, in no particular order.
        digest: SHA-256 of the source's files: what the data is, wherever it lies.
        warnings: complete sentences: counts that differ from the known ones, features taken from elsewhere.
    """

    name: str
    domain: str
    interactions: pa.Table
    items: pa.Table
    users: pa.Table
    digest: str
    warnings: tuple[str, ...]


def typed_interactions(table: pa.Table, where: str) -> tuple[pa.Table, list[str]]:
    """Returns the interactions with the types of `RawDataset`, and the problems of columns and types.

    Columns without a meaning here are left out; a column that cannot be converted is a problem and left out too.
    """
    problems: list[str] = []
    columns: dict[str, pa.ChunkedArray] = {}
    for name in ("user_id", "item_id"):
        if name not in table.column_names:
            problems.append(
                f"{where} has no column {name!r}; its columns are {shown(table.column_names)}; rename the column that holds it to {name!r}"
            )
            continue
        ids = id_column(table.column(name))
        if ids is None:
            problems.append(
                f"column {name!r} of {where} holds {table.schema.field(name).type} values, but ids must be strings or whole numbers; "
                "store it as strings"
            )
            continue
        columns[name] = ids
    count = next((source for source in COUNT_COLUMNS if source in table.column_names), None)
    for name, source in (("rating", "rating"), ("timestamp", "timestamp"), ("count", count)):
        if source is not None and source in table.column_names:
            numbers, bad = number_column(table.column(source))
            if numbers is None:
                problems.append(
                    f"column {source!r} of {where} holds values that are not numbers, for example {bad}; mend them or drop the column"
                )
            else:
                columns[name] = numbers
    if "split" in table.column_names:
        columns["split"] = pc.cast(table.column("split"), pa.string())
    return pa.table(columns), problems


def id_column(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Returns ids as strings, or None where the type cannot be an id (floats, lists, dates)."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer, pa.types.is_null)
    if any(fits(kind) for fits in plain):
        return pc.cast(column, pa.string())
    return None


def number_column(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray | None, str]:
    """Returns a column as float64 (null stays null), or None and the first values that are not numbers.

    Dates and times become seconds since 1970.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return pc.divide(pc.cast(pc.cast(column, pa.timestamp("us")), pa.int64()).cast(pa.float64(), safe=False), 1e6), ""
    try:
        return pc.cast(column, pa.float64(), safe=False), ""
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return None, f"type {kind}"
        numeric = pc.match_substring_regex(pc.utf8_trim_whitespace(column), r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(?i:nan|inf)$")
        return None, shown(pc.unique(column.filter(pc.invert(pc.fill_null(numeric, True)))).slice(0, _SHOWN).to_pylist())


def shown(values: Iterable[object], limit: int = 12) -> str:
    """Returns untrusted values for a message: quoted, escaped, each at most 60 characters, at most `limit` of them."""
    texts = [repr(str(value)[:60]) for value in values]
    return ", ".join(texts[:limit]) + (f", ... ({len(texts)} in all)" if len(texts) > limit else "")
