"""A RecBole dataset filled from a frozen split: no files, no filters, no remapping, a few milliseconds.

RecBole's internal id 0 is the padding; the id of user or item `i` of the split is `i + 1`, and `field2id_token` holds the
tokens under exactly these ids. Only train rows ever get in here.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.training.bridge import shims
from llmkt_ray.training.bridge.features import FeatureField, feature_fields
from llmkt_ray.training.bridge.settings import Settings

shims.install()

from recbole.data.dataset import Dataset  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.utils import FeatureSource, FeatureType  # noqa: E402

PADDING = 1
"""Offset between an index of the split and RecBole's id: id 0 is `[PAD]`."""

QUIET = logging.getLogger("llmkt_ray.recbole")
QUIET.setLevel(logging.ERROR)


def attribute_problem(name: str, fields: Sequence[str], dataset: str) -> str | None:
    """Returns why the items of a dataset cannot teach a model their field `name`, or None; `fields` are those that they have."""
    if name in fields:
        return None
    return f"the model learns to predict a field of the items, but those of {dataset!r} have no field {name!r}; " + (
        f"set its hyper-parameter item_attribute to one of: {', '.join(fields)}" if fields else "give the dataset an items table with one"
    )


class SplitDataset(Dataset):  # type: ignore[misc]
    """The train rows of a split in the form that RecBole's models read.

    Args:
        settings: RecBole's settings of the model.
        data: the split; its tokens give the ids.
        rows: what models may learn from: the train positives, or all train rows for labelled models.
    """

    def __init__(self, settings: Settings, data: PreparedData, rows: Rows) -> None:
        self.config = settings
        self.logger = QUIET
        self.dataset_name, self.dataset_path = data.name, ""
        self.field2type: dict[str, Any] = {}
        self.field2source: dict[str, Any] = {}
        self.field2id_token: dict[str, np.ndarray] = {}
        self.field2token_id: dict[str, dict[str, int]] = {}
        self.field2bucketnum: dict[str, int] = {}
        self.field2seqlen: dict[str, int] = {}
        self.alias: dict[str, Any] = {}
        self._preloaded_weight: dict[str, Any] = {}
        self.benchmark_filename_list = None
        self.uid_field, self.iid_field = settings["USER_ID_FIELD"], settings["ITEM_ID_FIELD"]
        self.label_field, self.time_field = settings["LABEL_FIELD"], settings["TIME_FIELD"]
        self._add_token_field(self.uid_field, data.user_tokens, FeatureSource.USER_ID)
        self._add_token_field(self.iid_field, data.item_tokens, FeatureSource.ITEM_ID)
        columns = {
            self.uid_field: torch.from_numpy(rows.user.astype(np.int64) + PADDING),
            self.iid_field: torch.from_numpy(rows.item.astype(np.int64) + PADDING),
            settings["RATING_FIELD"]: torch.from_numpy(rows.rating.astype(np.float32)),
            self.time_field: torch.from_numpy(rows.timestamp.astype(np.float32)),
        }
        self.set_field_property(settings["RATING_FIELD"], FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
        self.set_field_property(self.time_field, FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
        self.inter_feat = Interaction(columns)
        self.user_feat, self.item_feat = None, None
        self.feat_name_list = ["inter_feat"]
        if settings["MODEL_FAMILY"] == "sequential":
            self.field2seqlen[self.iid_field + settings["LIST_SUFFIX"]] = int(settings["MAX_ITEM_LIST_LENGTH"])
        self.user_fields: tuple[FeatureField, ...] = ()
        self.item_fields: tuple[FeatureField, ...] = ()
        if settings["MODEL_FAMILY"] == "context":
            self.user_fields, self.item_fields = feature_fields(data.users, "user_id"), feature_fields(data.items, "item_id")
            self.user_feat = self._add_features(self.uid_field, self.user_fields, FeatureSource.USER)
            self.item_feat = self._add_features(self.iid_field, self.item_fields, FeatureSource.ITEM)
        elif settings["item_attribute"]:  # S3Rec's pre-training predicts it
            self.item_fields = self._attribute(data, settings["item_attribute"])
            self.item_feat = self._add_features(self.iid_field, self.item_fields, FeatureSource.ITEM)

    @staticmethod
    def _attribute(data: PreparedData, name: str) -> tuple[FeatureField, ...]:
        """Returns the one field of items that a model is trained to predict."""
        fields = feature_fields(data.items, "item_id")
        problem = attribute_problem(name, [field.name for field in fields], data.name)
        if problem:
            raise TrainingError(problem)
        return tuple(field for field in fields if field.name == name)

    def _add_token_field(self, field: str, tokens: np.ndarray, source: Any) -> None:
        self.set_field_property(field, FeatureType.TOKEN, source, 1)
        self.field2id_token[field] = np.concatenate([np.asarray(["[PAD]"]), tokens])
        self.field2token_id[field] = {token: index for index, token in enumerate(self.field2id_token[field].tolist())}

    def _add_features(self, id_field: str, fields: tuple[FeatureField, ...], source: Any) -> Interaction:
        """Registers fields and returns the feature table by RecBole id."""
        for field in fields:
            kind = FeatureType.TOKEN_SEQ if field.is_sequence else FeatureType.TOKEN
            self.set_field_property(field.name, kind, source, field.values.shape[1] if field.is_sequence else 1)
            self.field2id_token[field.name] = field.tokens
        return Interaction({id_field: torch.arange(self.num(id_field))} | {field.name: field.values for field in fields})

    def _history_matrix(
        self, row: str, value_field: str | None = None, max_history_len: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """RecBole's history matrix in array operations instead of a Python loop over all rows; equal for equal seeds.

        Returns:
            ids int64 `(rows, longest)`, values float32 of the same shape, lengths int64 `(rows,)`; 0 is padding.
        """
        order = torch.randperm(len(self.inter_feat)).numpy()
        users = self.inter_feat[self.uid_field].numpy()[order]
        items = self.inter_feat[self.iid_field].numpy()[order]
        values = np.ones(len(order)) if value_field is None else self.inter_feat[value_field].numpy()[order]
        owners, others, n_owners = (users, items, self.user_num) if row == "user" else (items, users, self.item_num)
        lengths = np.bincount(owners, minlength=n_owners)
        width = int(lengths.max()) if max_history_len is None else min(int(max_history_len), int(lengths.max()))
        by_owner = np.argsort(owners, kind="stable")
        place = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        kept = by_owner[place < width]
        place = place[place < width]
        ids = np.zeros((n_owners, width), dtype=np.int64)
        matrix = np.zeros((n_owners, width), dtype=np.float32)
        ids[owners[kept], place] = others[kept]
        matrix[owners[kept], place] = values[kept]
        return torch.from_numpy(ids), torch.from_numpy(matrix), torch.from_numpy(np.minimum(lengths, width))
