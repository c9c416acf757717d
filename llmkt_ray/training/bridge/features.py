"""Features of users and items for context-aware models: the split's tables as RecBole fields.

A text column is a token field if its values repeat (gender, year), a list column is a token-sequence field (genres). Columns that
name nearly every row apart (title, zip code) are left out: they are identifiers, not features. Id 0 is RecBole's padding and
stands for an absent value.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

_TEXT = ("title", "description")
"""Columns that are texts, whatever their number of values."""
_DISTINCT_AT_MOST = 0.5
"""Largest share of distinct values among the rows of a token field."""


@dataclass(frozen=True)
class FeatureField:
    """One field of users or items.

    Attributes:
        name: the column's name.
        tokens: raw values by RecBole id, `[PAD]` first.
        values: RecBole ids by user or item id, int64 `(n + 1,)`, or `(n + 1, longest)` for a sequence, 0 = absent.
    """

    name: str
    tokens: np.ndarray
    values: torch.Tensor

    @property
    def is_sequence(self) -> bool:
        """Whether an entity may have several values."""
        return self.values.ndim == 2


def feature_fields(table: pa.Table, id_column: str) -> tuple[FeatureField, ...]:
    """Returns the fields of a feature table in index order of its entities.

    Args:
        table: `PreparedData.users` or `.items`.
        id_column: its id column, which is no feature.
    """
    fields = []
    for name in table.column_names:
        if name == id_column or name in _TEXT:
            continue
        column = table.column(name).combine_chunks()
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            fields.append(_sequence_field(name, column))
        else:
            made = _token_field(name, column)
            if made is not None:
                fields.append(made)
    return tuple(field for field in fields if len(field.tokens) > 2)


def _token_field(name: str, column: pa.Array) -> FeatureField | None:
    tokens, codes = _codes(column)
    if len(tokens) - 1 > _DISTINCT_AT_MOST * len(column):
        return None
    return FeatureField(name, tokens, torch.from_numpy(np.concatenate([[0], codes])))


def _sequence_field(name: str, column: pa.Array) -> FeatureField:
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
    tokens, codes = _codes(pc.list_flatten(column))
    values = np.zeros((len(column) + 1, max(1, int(lengths.max(initial=0)))), dtype=np.int64)
    owner = np.repeat(np.arange(len(column)), lengths)
    place = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    values[owner + 1, place] = codes
    return FeatureField(name, tokens, torch.from_numpy(values))


def _codes(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens sorted after `[PAD]`, and each value's id, int64; absent and empty values are 0."""
    texts = pc.fill_null(values.cast(pa.string()), "").to_numpy(zero_copy_only=False).astype(np.str_)
    distinct, places = np.unique(texts, return_inverse=True)
    known = distinct != ""
    ids = np.where(known, np.cumsum(known), 0)
    return np.concatenate([np.asarray(["[PAD]"]), distinct[known]]), ids[places].astype(np.int64)
