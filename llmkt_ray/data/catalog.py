"""The one way to read any dataset: by its known name, or from a folder in one of the formats read here."""

import importlib.util
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from llmkt_ray.data.fields import ITEM_FIELDS, USER_FIELDS, standard_features
from llmkt_ray.data.known import KNOWN, KnownDataset, counts
from llmkt_ray.data.movielens import spell_out_codes
from llmkt_ray.data.raw import RawDataset, typed_interactions
from llmkt_ray.data.source import READERS, locate
from llmkt_ray.errors import DatasetError
from llmkt_ray.study import DatasetConfig

__all__ = ["KNOWN", "KnownDataset", "load_raw", "read_raw"]


def load_raw(config: DatasetConfig) -> RawDataset:
    """Reads a dataset as it is, before filters and split.

    Raises:
        DatasetError: files are absent or unreadable, or columns are missing or of a wrong type; all such problems at once.
    """
    raw, problems = read_raw(config)
    if raw is None or problems:
        raise DatasetError("; ".join(problems))
    return raw


def read_raw(config: DatasetConfig) -> tuple[RawDataset | None, list[str]]:
    """Reads a dataset and returns it with every problem of files, columns and types; None where nothing could be read."""
    try:
        source = locate(config)
        reader = READERS[source.format]
        tables = reader.read(source.files)
    except DatasetError as error:
        return None, [str(error)]
    known = KNOWN.get(config.name)
    warnings = list(tables.warnings)
    interactions, problems = typed_interactions(tables.interactions, "the interactions")
    items_source, users_source, spaced = tables.items, tables.users, reader.spaced_lists
    if tables.items is None and not problems and _is_ml_100k(interactions):
        bundle = locate(DatasetConfig(name="ml-100k"))
        extra = READERS[bundle.format].read(bundle.files)
        items_source, users_source, spaced = extra.items, extra.users if users_source is None else users_source, True
        warnings.append("there is no items table; its pairs of user and item are those of ml-100k, so titles come from RecBole's wheel")
    items, item_problems, item_warnings = standard_features(items_source, "item_id", ITEM_FIELDS, spaced_lists=spaced)
    users, user_problems, user_warnings = standard_features(users_source, "user_id", USER_FIELDS, spaced_lists=spaced)
    if config.name == "ml-1m":
        users = spell_out_codes(users)
    raw = RawDataset(
        name=config.name,
        domain=config.domain or (known.domain if known else "generic"),
        interactions=interactions,
        items=items,
        users=users,
        digest=source.digest,
        warnings=(*warnings, *item_warnings, *user_warnings),
    )
    return raw, [f"dataset {config.name!r}: {problem}" for problem in problems + item_problems + user_problems]


@lru_cache(maxsize=2)
def _ml_100k_pairs() -> frozenset[str]:
    table = READERS["atomic"].read(locate(DatasetConfig(name="ml-100k")).files).interactions
    return frozenset(_pairs(table))


def _pairs(table: pa.Table) -> list[str]:
    return [str(pair) for pair in pc.binary_join_element_wise(table.column("user_id"), table.column("item_id"), "\t").to_pylist()]


def _is_ml_100k(interactions: pa.Table) -> bool:
    """Says whether the pairs of user and item are exactly those of ml-100k: content, not the name, identifies it."""
    wanted = KNOWN["ml-100k"].releases["RecBole's wheel"]
    if len(interactions) != wanted.interactions or importlib.util.find_spec("recbole") is None:
        return False
    return counts(interactions) == wanted and frozenset(_pairs(interactions)) == _ml_100k_pairs()
