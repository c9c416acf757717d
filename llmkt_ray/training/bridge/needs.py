"""What a model needs of a split beside rows to learn from, told from the split alone: nothing is built, so it can be asked early."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.training.bridge.dataset import attribute_problem
from llmkt_ray.training.bridge.features import feature_fields
from llmkt_ray.training.bridge.models import class_of
from llmkt_ray.training.bridge.own_trainers import Needs, Sizes, trainer_of
from llmkt_ray.training.bridge.settings import make_settings


def needs_of(model: str, class_path: str | None = None) -> Needs:
    """Returns what tells whether a model, RecBole's or derived from it, finds in a split what it needs; empty for most.

    Raises:
        TrainingError: there is no such model.
    """
    return trainer_of(class_of(model, class_path)[0]).needs


class Offer:
    """What a split offers to models that need more of it than rows.

    Args:
        data: the split.
    """

    def __init__(self, data: PreparedData) -> None:
        self._data = data

    @cached_property
    def _item_fields(self) -> list[str]:
        return [field.name for field in feature_fields(self._data.items, "item_id")]

    @cached_property
    def _learners(self) -> int:
        """Users with a train positive: the rows of models that learn from users."""
        return len(np.unique(self._data.train.positives().user))

    def problem(self, model: str, *, hyperparameters: Mapping[str, Any], batch_size: int, class_path: str | None = None) -> str | None:
        """Returns why a model cannot be trained on the split, in the words of its trial, or None.

        Args:
            model: RecBole's name of it, or the label of the user's own class.
            hyperparameters: by RecBole's names.
            batch_size: rows a batch.
            class_path: `package.module:Class` of the user's own model.

        Raises:
            TrainingError: the model or a hyper-parameter is unknown.
        """
        model_class, entry = class_of(model, class_path)
        settings = make_settings(
            model,
            family=entry.family,
            hyperparameters=hyperparameters,
            dataset=self._data.name,
            device="cpu",
            own_class=class_path is not None,
        )
        attribute = settings["item_attribute"] if entry.family != "context" else None
        if attribute:
            return attribute_problem(attribute, self._item_fields, self._data.name)
        last = self._learners % batch_size or batch_size
        return trainer_of(model_class).problem(settings, Sizes(self._data.n_users, self._data.n_items, last))
