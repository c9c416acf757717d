"""Item and user features under standard names, and which of them a profile prompt of each domain can use."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from llmkt_ray.data.raw import id_column

ITEM_FIELDS: dict[str, tuple[str, ...]] = {
    "title": ("title", "movie_title", "item_title", "book_title", "artist_name", "name"),
    "year": ("year", "release_year", "publication_year"),
    "genres": ("genres", "genre", "class"),
    "creator": ("creator", "author", "artist", "director", "brand"),
    "category": ("category", "categories"),
    "description": ("description", "llm_description", "overview"),
}
"""Standard item field to the source columns it is taken from, the first that is there."""

USER_FIELDS: dict[str, tuple[str, ...]] = {"age": ("age",), "gender": ("gender",), "occupation": ("occupation",)}
"""Standard user field to source columns."""

LIST_FIELDS = ("genres", "category")
"""Fields that hold several values an item: Arrow type list<string>; all others are strings."""

DOMAIN_FIELDS: dict[str, tuple[str, ...]] = {
    "movies": ("title", "year", "genres", "creator", "description"),
    "music": ("title", "creator", "year", "genres", "category", "description"),
    "books": ("title", "creator", "year", "genres", "category", "description"),
    "generic": ("title", "creator", "year", "genres", "category", "description"),
}
"""Item fields that a prompt of a domain can use, most telling first."""

ITEM_NOUNS: dict[str, tuple[str, str]] = {
    "movies": ("film", "films"),
    "music": ("album or artist", "albums and artists"),
    "books": ("book", "books"),
    "generic": ("item", "items"),
}
"""How a prompt calls one item and several."""


TAKEN: dict[str, str] = {"movies": "watched", "music": "played", "books": "read", "generic": "chosen"}
"""What a user does with an item, for datasets that say how often."""


@dataclass(frozen=True)
class FieldCoverage:
    """One item field of one dataset.

    Attributes:
        name: a standard item field.
        coverage: share of the items that have a value, in (0, 1].
    """

    name: str
    coverage: float


def domain_fields(domain: str, items: pa.Table) -> tuple[FieldCoverage, ...]:
    """Returns the item fields that prompts of `domain` can use on these items: those with at least one value."""
    found = []
    for name in DOMAIN_FIELDS[domain]:
        if name in items.column_names and len(items):
            coverage = 1.0 - items.column(name).null_count / len(items)
            if coverage > 0:
                found.append(FieldCoverage(name, coverage))
    return tuple(found)


def standard_features(
    table: pa.Table | None, id_name: str, fields: dict[str, tuple[str, ...]], *, spaced_lists: bool
) -> tuple[pa.Table, list[str], list[str]]:
    """Returns features with standard names and types, problems, and warnings.

    Columns: the id, then the standard fields that are there, then every other plain column as strings. Empty text is null.

    Args:
        table: the source's features; None gives a table of no rows.
        id_name: "item_id" or "user_id".
        fields: `ITEM_FIELDS` or `USER_FIELDS`.
        spaced_lists: whether a list without "|" or "," in it is separated by spaces (RecBole's token_seq).
    """
    if table is None:
        return pa.table({id_name: pa.array([], pa.string())}), [], []
    name = "items" if id_name == "item_id" else "users"
    ids = id_column(table.column(id_name)) if id_name in table.column_names else None
    if ids is None:
        return (
            pa.table({id_name: pa.array([], pa.string())}),
            [f"the {name} table has no column {id_name!r} of strings or whole numbers"],
            [],
        )
    columns: dict[str, pa.ChunkedArray] = {id_name: ids}
    taken = {id_name}
    for field, sources in fields.items():
        source = next((s for s in sources if s in table.column_names), None)
        if source is not None:
            taken.add(source)
            column = table.column(source)
            columns[field] = _lists(column, spaced_lists) if field in LIST_FIELDS else _text(column)
    if "title" in columns and "year" not in columns and "year" in fields:
        title, year = _year_out_of_title(columns["title"])
        if year.null_count < len(year):
            columns |= {"title": title, "year": year}
    for other in table.column_names:
        if other not in taken and other not in columns and not pa.types.is_nested(table.schema.field(other).type):
            columns[other] = _text(table.column(other))
    features = pa.table(columns)
    features = features.filter(pc.is_valid(_text(features.column(id_name))))
    first = pc.equal(pc.index_in(features.column(id_name), _values(features.column(id_name))), pa.array(range(len(features)), pa.int32()))
    repeated = len(features) - pc.sum(first).as_py() if len(features) else 0
    if not repeated:
        return features, [], []
    return features.filter(first), [], [f"the {name} table describes {repeated} ids more than once; the first row of each is used"]


def _values(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns values as trimmed strings, empty ones as null; whole floats without ".0"; lists joined by a space."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        column = pc.binary_join(pc.cast(column, pa.list_(pa.string())), " ")
    text = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    if pa.types.is_floating(kind):
        text = pc.replace_substring_regex(text, r"\.0$", "")
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _lists(column: pa.ChunkedArray, spaced: bool) -> pa.ChunkedArray:
    """Returns list<string>; text is split at "|", else at ",", else (where `spaced`) at spaces; no values is null."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        text = _text(column)
        bars = pc.any(pc.match_substring(text, "|")).as_py()
        commas = pc.any(pc.match_substring(text, ",")).as_py()
        if bars:
            column = pc.split_pattern(text, "|")
        elif commas:
            bare = pc.replace_substring_regex(text, r"[\[\]'\"]", "")
            column = pc.split_pattern_regex(pc.utf8_trim_whitespace(bare), r"\s*,\s*")
        elif spaced:
            column = pc.utf8_split_whitespace(text)
        else:
            column = pc.split_pattern(text, "|")
    lists = pc.cast(column, pa.list_(pa.string()))
    empty = pc.equal(pc.list_value_length(lists), 0)
    return pc.if_else(empty, pa.scalar(None, pa.list_(pa.string())), lists)


def _year_out_of_title(title: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Returns titles without a closing "(1995)", and those years: MovieLens writes them as one text."""
    found = pc.extract_regex(title, r"^(?P<title>.*\S)\s*\((?P<year>(?:18|19|20)\d\d)\)$")
    bare = pc.if_else(pc.is_valid(found), pc.struct_field(found, "title"), title)
    return bare, pc.struct_field(found, "year")
