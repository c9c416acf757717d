"""One probe batch for any general, context-aware or sequential model of RecBole, on a small synthetic split.

General models are built by the package's own bridge. Context-aware and sequential models need fields of users and items,
or histories in order; these are added here to the bridge's dataset: user fields `age` and `gender`, an item field `genre`
(a sequence of tokens), and for each user the items of their train rows in order of time.
"""

import random
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.training.bridge.dataset import PADDING, QUIET, SplitDataset
from llmkt_ray.training.bridge.own_trainers import trainer_of
from llmkt_ray.training.bridge.settings import Settings, make_settings
from llmkt_ray.transfer.discovery import Positions

from recbole.data.interaction import Interaction  # isort: skip - after the bridge's shims
from recbole.data.transform import construct_transform  # isort: skip
from recbole.utils import FeatureSource, FeatureType, get_model  # isort: skip

N_GENRES, N_AGES, N_GENDERS = 9, 7, 3
BATCH, HISTORY = 9, 5
EXTRA_SETTINGS = {"selected_features": ["genre"], "item_attribute": "genre", "train_stage": "pretrain", "MAX_ITEM_LIST_LENGTH": 10}


class FeatureDataset(SplitDataset):  # type: ignore[misc]
    """The bridge's dataset with fields of users and items, and with each user's history."""

    def __init__(self, settings: Settings, data: PreparedData) -> None:
        # Without the split's own features: the same fields for both families are added below.
        bare = replace(data, users=data.users.select(["user_id"]), items=data.items.select(["item_id"]))
        attribute, settings["item_attribute"] = settings["item_attribute"], None  # S3Rec's; the field is added below
        super().__init__(settings, bare, data.train.positives())
        settings["item_attribute"] = attribute
        generator = torch.Generator().manual_seed(0)
        n_users, n_items = data.n_users + PADDING, data.n_items + PADDING
        for field, size, source in (("age", N_AGES, FeatureSource.USER), ("gender", N_GENDERS, FeatureSource.USER)):
            self._add_token_field(field, np.asarray([str(i) for i in range(1, size)]), source)
        self._add_token_field("genre", np.asarray([f"g{i}" for i in range(1, N_GENRES)]), FeatureSource.ITEM)
        self.set_field_property("genre", FeatureType.TOKEN_SEQ, FeatureSource.ITEM, 3)
        self.user_feat = Interaction(
            {
                self.uid_field: torch.arange(n_users),
                "age": torch.randint(1, N_AGES, (n_users,), generator=generator),
                "gender": torch.randint(1, N_GENDERS, (n_users,), generator=generator),
            }
        )
        self.item_feat = Interaction(
            {self.iid_field: torch.arange(n_items), "genre": torch.randint(1, N_GENRES, (n_items, 3), generator=generator)}
        )
        self.feat_name_list = ["inter_feat", "user_feat", "item_feat"]
        self.longest = int(settings["MAX_ITEM_LIST_LENGTH"])
        self.item_list_field = self.iid_field + settings["LIST_SUFFIX"]
        self.length_field = settings["ITEM_LIST_LENGTH_FIELD"]

    def add_histories(self) -> None:
        """Adds each user's history to the interactions, as RecBole's sequential dataset does: the target comes after it."""
        self.set_field_property(self.item_list_field, FeatureType.TOKEN_SEQ, FeatureSource.INTERACTION, self.longest)
        self.set_field_property(self.length_field, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)
        users, items = self.inter_feat[self.uid_field], self.inter_feat[self.iid_field]
        self.histories = torch.zeros(self.user_num, self.longest, dtype=torch.int64)
        self.lengths = torch.ones(self.user_num, dtype=torch.int64)
        for user in range(1, self.user_num):
            # Equally long: BERT4Rec and S3Rec mask at random, and their draws would shift with the lengths.
            mine = items[users == user][:HISTORY]
            self.histories[user, : len(mine)] = mine
            self.lengths[user] = len(mine)
        columns = dict(self.inter_feat.interaction)
        columns[self.item_list_field], columns[self.length_field] = self.histories[users], self.lengths[users]
        self.inter_feat = Interaction(columns)


class FeatureProbe:
    """A model with fields or histories, and a batch of it; see `llmkt_ray.transfer.discovery.ProbeBatch`."""

    def __init__(self, name: str, family: str, data: PreparedData) -> None:
        settings = make_settings(name, family=family, hyperparameters={}, dataset=data.name, device="cpu")
        for key, value in EXTRA_SETTINGS.items():
            settings[key] = value
        self.dataset = FeatureDataset(settings, data)
        self.positions: Positions = "fields"
        self.longest = int(settings["MAX_ITEM_LIST_LENGTH"])
        if family == "sequential":
            self.positions = "sequence"
            self.dataset.add_histories()
        self._settings, self._transform = settings, construct_transform(settings)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - RecBole's models draw from the global generator
        torch.manual_seed(1)
        self.module: nn.Module = get_model(name)(settings, self.dataset)
        trainer_of(type(self.module)).begin(self.module)
        for part in self.module.modules():
            if "logger" in vars(part):
                part.logger = QUIET
        self.n_users, self.n_items = self.dataset.user_num, self.dataset.item_num
        self.users = torch.arange(1, BATCH + 1)
        # Target items differ from row to row, and all of them occur in training.
        self._seen = torch.unique(self.dataset.inter_feat[self.dataset.iid_field])
        self._places = torch.arange(BATCH) * 5

    def loss(self, users: Tensor, other_items: bool) -> Tensor:
        """Returns the training loss with these users and what belongs to them; target items replaced where asked."""
        dataset = self.dataset
        items, negatives = (self._seen[(self._places + shift + (1 if other_items else 0)) % len(self._seen)] for shift in (0, 52))
        columns = dict(dataset.user_feat[users].interaction) | dict(dataset.item_feat[items].interaction)
        columns[dataset.uid_field], columns[dataset.iid_field] = users, items
        columns[self._settings["NEG_PREFIX"] + dataset.iid_field] = negatives
        columns[dataset.label_field] = (torch.arange(len(users)) % 2).float()
        columns[dataset.time_field] = torch.arange(len(users)).float()
        if self.positions == "sequence":
            histories = dataset.histories[users]
            columns[dataset.item_list_field], columns[dataset.length_field] = histories, dataset.lengths[users]
            columns[self._settings["NEG_PREFIX"] + dataset.item_list_field] = (histories + 200) % self.n_items * (histories > 0)
            columns["genre" + self._settings["LIST_SUFFIX"]] = dataset.item_feat["genre"][histories]
        batch = self._transform(dataset, Interaction(columns))
        loss = self.module.calculate_loss(batch)
        return sum(loss) if isinstance(loss, tuple) else loss
