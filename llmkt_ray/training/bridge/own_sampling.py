"""Models that bring a sampling of their own: their batches come from RecBole's loader, sampler and transforms, not from ours.

The lean path knows one sampling, uniform negatives. Negatives by popularity (`distribution: popularity`), hard negatives that the
model itself picks among candidates (`dynamic: true`, Zhang et al. 2013) and transformed histories (`transform`: BERT4Rec masks items)
are RecBole's own code on the same rows. They are slower, and the row of such a trial says `path: recbole`.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from llmkt_ray.errors import TrainingError
from llmkt_ray.seeds import derive_seed
from llmkt_ray.training.bridge import shims
from llmkt_ray.training.bridge.dataset import SplitDataset
from llmkt_ray.training.bridge.registry import ModelEntry
from llmkt_ray.training.bridge.settings import Settings

shims.install()

from recbole.data.dataloader import TrainDataLoader  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.data.transform import construct_transform  # noqa: E402
from recbole.sampler import Sampler  # noqa: E402
from recbole.utils import InputType, ModelType  # noqa: E402

_INPUT = {"pairwise": InputType.PAIRWISE, "pointwise": InputType.POINTWISE}


def has_own_negatives(entry: ModelEntry, settings: Mapping[str, Any]) -> bool:
    """Whether the negatives that are asked for are not the uniform ones of the lean path."""
    sampling = settings["train_neg_sample_args"]
    return entry.batches in _INPUT and bool(sampling["distribution"] == "popularity" or sampling["dynamic"])


def transform_of(settings: Settings) -> Any:
    """Returns RecBole's transform of a model's batches, called with (dataset, batch); None where it has none.

    It writes the names of its columns into the settings, so it is made before the model, as in RecBole.
    """
    return construct_transform(settings) if settings["transform"] is not None else None


class RecBoleLoader:
    """RecBole's `TrainDataLoader` and `Sampler` on the train rows of a split.

    Args:
        entry: the model's entry, pairwise or pointwise.
        module: the model itself: a dynamic sampling asks it for scores.
        settings: its settings.
        dataset: its dataset.
        batch_size: rows a batch, negatives included.

    Raises:
        TrainingError: a user leaves no item to draw.
    """

    def __init__(self, entry: ModelEntry, module: nn.Module, settings: Settings, dataset: SplitDataset, batch_size: int) -> None:
        sampling = settings["train_neg_sample_args"]
        users, items = (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))
        drawable = len(np.unique(items)) if sampling["distribution"] == "popularity" else dataset.item_num - 1
        liked = np.bincount(np.unique(users.astype(np.int64) * dataset.item_num + items) // dataset.item_num)
        if liked.max() >= drawable:  # RecBole's sampler would look for ever
            raise TrainingError(
                f"{int((liked >= drawable).sum())} users have all {drawable} items that can be drawn as train positives: no negative "
                "is left for them; filter them with `filters.user_max` or raise `positive.rating_at_least`"
            )
        sampler = Sampler("train", dataset, sampling["distribution"], float(sampling["alpha"])).set_phase("train")
        values = settings.final_config_dict | {
            "MODEL_TYPE": ModelType.GENERAL, "MODEL_INPUT_TYPE": _INPUT[entry.batches], "train_batch_size": batch_size, "worker": 0,
            "seed": 0,
        }  # fmt: skip
        self._loader = TrainDataLoader(Settings(values), dataset, sampler, shuffle=True)
        self._loader.get_model(module)
        self._module = module

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._loader)

    def epoch(self, seed: int, epoch: int) -> Iterator[Interaction]:
        """Yields the batches of epoch `epoch`; order and draws depend on (seed, epoch), dynamic negatives on the model's weights too."""
        self._loader.generator.manual_seed(derive_seed(seed, "order", epoch))
        np.random.seed(derive_seed(seed, "negatives", epoch))  # noqa: NPY002 - RecBole's sampler draws from the global generator
        random.seed(derive_seed(seed, "negatives", epoch))
        batches = iter(self._loader)
        while True:
            training = self._module.training
            with torch.no_grad():  # a dynamic sampling scores candidates: neither gradients nor the hook have a part in it
                batch = next(batches, None)
            if self._module.training != training:  # not otherwise: SGL makes its views of the graph anew in `train`
                self._module.train(training)
            if batch is None:
                return
            yield batch
