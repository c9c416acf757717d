"""The taps of a RecBole model: one small batch through a freshly built model says where a profile can be transferred.

"Layer k" is the k-th user-aligned candidate in forward order; `auto` is the one that `auto_layer` describes;
`all` is every candidate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.errors import LayerError, LlmktError
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.training.bridge.dataset import PADDING
from llmkt_ray.training.bridge.models import BuiltModel, build_model
from llmkt_ray.training.bridge.registry import BESIDE_SCORES, Family, model_entry
from llmkt_ray.training.bridge.sequences import SequenceTable
from llmkt_ray.transfer.discovery import Positions, discover_taps
from llmkt_ray.transfer.state import random_state_kept
from llmkt_ray.transfer.taps import Tap, auto_tap, candidates, named_tap
from llmkt_ray.transfer.weights import frozen_parameters

_PROBE_SEED = 1
_POSITIONS: dict[Family, Positions] = {"general": "history", "context": "fields", "sequential": "sequence"}


class RecBoleProbe:
    """A probe batch of a built model: a few users, each with items of the catalogue; see `transfer.discovery.ProbeBatch`.

    Args:
        model: the built model.
        data: the split it was built on.

    Attributes:
        users: the batch's users; each comes `tiles` times, once for each row that RecBole makes of a positive.

    Raises:
        LayerError: the split has too few users with training rows to probe with.
    """

    def __init__(self, model: BuiltModel, data: PreparedData) -> None:
        self._model = model
        self.n_users, self.n_items = model.n_users + PADDING, model.n_items + PADDING
        self._kind = model.entry.batches
        self.tiles = {"pairwise": max(model.negatives_per_row, 1), "pointwise": 1 + model.negatives_per_row}.get(self._kind, 1)
        positives = data.train.positives()
        with_rows = np.unique(positives.user).astype(np.int64) + PADDING
        sizes = {self.n_users, self.n_items, self.n_users + self.n_items}
        count = next((c for c in range(9, 2, -2) if len(with_rows) >= c + 2 and c * self.tiles not in sizes), None)
        if count is None:
            raise LayerError(f"dataset {data.name!r} has {len(with_rows)} users with training rows, too few to probe a model's layers with")
        self.positions: Positions = _POSITIONS[model.entry.family]
        self.longest = 0
        if self._kind == "sequences":
            self.longest = int(model.settings["MAX_ITEM_LIST_LENGTH"])
            self._histories = SequenceTable.of([data.train], self.longest)
        distinct = torch.from_numpy(with_rows[:count])
        self.users = distinct.repeat(self.tiles).to(model.device)
        # Items without a training row can have all-zero activations in graph models: only items that were seen.
        self._seen = torch.from_numpy(np.unique(positives.item).astype(np.int64) + PADDING).to(model.device)

    def lengths(self, users: Tensor) -> Tensor | None:
        """Returns the filled positions of the users' histories `(batch,)`; None for models that read none in order."""
        return self._history(users)[1] if self._kind == "sequences" else None

    def _history(self, users: Tensor) -> tuple[Tensor, Tensor]:
        histories, lengths = self._histories.whole(users.cpu().numpy() - PADDING)
        return histories.to(users.device), lengths.to(users.device)

    def loss(self, users: Tensor, other_items: bool) -> Tensor:
        """Returns the training loss of a batch of these users `(batch,)`, and with other target items where asked."""
        self._model.passes(1)[0].before(self._model.module)
        steps = torch.arange(len(users), device=users.device)
        shift = 1 if other_items else 0
        items, negatives = (self._seen[(place + shift) % len(self._seen)] for place in (steps * 3 + 1, steps * 5 + 2))
        if self._kind == "users":
            return self._model.loss(self._model.rows(users))
        if self._kind == "pairwise":
            return self._model.loss(self._model.pairs(users, items, negatives))
        if self._kind == "sequences":
            chosen = negatives if self._model.negatives_per_row else None
            batch = self._model.next_items(users, *self._history(users), items, chosen)
            return self._model.loss(self._model.transformed(batch, by_row=True))
        labels = torch.zeros(len(users), device=users.device)
        labels[: len(users) // self.tiles] = 1.0
        return self._model.loss(self._model.labelled(users, items, labels))


def model_taps(model: BuiltModel, data: PreparedData) -> tuple[Tap, ...]:
    """Returns every tap of a built model in forward order; the model and the global random state are left as they were.

    Raises:
        LayerError: it is a reference model, which has no training step, or its training step fails on the probe batch.
    """
    if model.entry.is_reference:
        raise LayerError(f"{model.entry.name} is a reference model: it is computed, not trained in steps, and has no layer")
    try:
        return discover_taps(model.module, RecBoleProbe(model, data))
    except LlmktError:
        raise
    except Exception as error:  # a model may fail with anything, and a study's check must say which model it was
        raise LayerError(
            f"{model.entry.name} fails in a training step on dataset {data.name!r} with {type(error).__name__}: {error}; "
            "check its hyper-parameters, or choose another model"
        ) from error


def probe_layers(
    model: str, data: PreparedData | None, hyperparameters: Mapping[str, Any], class_path: str | None = None
) -> tuple[Tap, ...]:
    """Builds a model and returns every tap of it in forward order, usable or not, each with its reason.

    Args:
        model: RecBole's name of the model, or the label of the user's own class.
        data: the split to build it on; None: a small synthetic one (shapes that depend on the catalogue will differ).
        hyperparameters: by RecBole's names.
        class_path: `package.module:Class` of the user's own model.

    Raises:
        LayerError: the model is a reference model without layers.
        TrainingError: the model cannot be built.
    """
    if class_path is None and model_entry(model).is_reference:
        raise LayerError(f"{model} is a reference model: it is computed, not trained in steps, and has no layer")
    split, settings = to_probe(data, hyperparameters)
    with random_state_kept():
        built = build_model(model, split, hyperparameters=settings, seed=_PROBE_SEED, class_path=class_path)
        return model_taps(built, split)


def check_freezing(
    model: str, hyperparameters: Mapping[str, Any], class_path: str | None, schedule: ScheduleConfig, taps: Sequence[Tap]
) -> None:
    """Returns if a schedule's freezing patterns match parameters of a model and leave its taps something to learn with.

    Args:
        model: RecBole's name of the model, or the label of the user's own class.
        hyperparameters: by RecBole's names.
        class_path: `package.module:Class` of the user's own model.
        schedule: the schedule.
        taps: the layers that the study taps.

    Raises:
        TrainingError: a pattern matches no parameter, or nothing is left to train.
        LayerError: all that lies before a tap is fixed while it is taught.
    """
    if not schedule.freeze:
        return
    split, settings = to_probe(None, hyperparameters)
    with random_state_kept():
        built = build_model(model, split, hyperparameters=settings, seed=_PROBE_SEED, class_path=class_path)
        parameters = {name: one for name, one in built.module.named_parameters() if one.requires_grad}
        for phase, patterns in schedule.freeze.items():
            frozen = frozen_parameters(parameters, phase, patterns)
            if phase != ("phase2" if schedule.kind == "reversed" else "phase1"):
                continue
            for name in frozen:
                parameters[name].requires_grad_(False)
            usable = {tap.name for tap in model_taps(built, split) if tap.usable}
            for tap in taps:
                if tap.name not in usable:
                    raise LayerError(
                        f"freezing {list(patterns)} in {phase}, in which profiles are transferred, fixes all parameters before layer "
                        f"{tap.name!r} of {model}: nothing could be learned through it; freeze fewer, or tap another layer"
                    )


def to_probe(data: PreparedData | None, hyperparameters: Mapping[str, Any]) -> tuple[PreparedData, dict[str, Any]]:
    """Returns the split and the settings that a model is probed with: those given, or the synthetic split where there is none.

    The synthetic one has not every field of the items that S3Rec may be told to predict; neither layers nor tables depend on which it is.
    """
    if data is not None:
        return data, dict(hyperparameters)
    return probe_split(), {name: value for name, value in hyperparameters.items() if name != "item_attribute"}


def auto_layer(taps: Sequence[Tap], model: str) -> Tap:
    """Returns the one tap that `layers: auto` stands for; see `transfer.taps.auto_tap`.

    Raises:
        LayerError: no tap of the model knows the user.
    """
    beside = BESIDE_SCORES.get(model, ())
    return auto_tap([tap for tap in taps if not any(f"{tap.site.module}.".startswith(f"{module}.") for module in beside)], model)


def resolve_layers(wanted: str | Sequence[str], taps: Sequence[Tap], model: str = "the model") -> tuple[Tap, ...]:
    """Returns the taps that a study asks for.

    Args:
        wanted: `auto`, `all`, or names; a name is a tap's name or "layer k".
        taps: what `probe_layers` returned.
        model: the model's name, for messages.

    Raises:
        LayerError: a layer does not exist or cannot be used, or no layer is aligned with users.
    """
    if wanted == "auto":
        return (auto_layer(taps, model),)
    if wanted == "all":
        found = candidates(taps)
        return found or (auto_layer(taps, model),)
    names = (wanted,) if isinstance(wanted, str) else wanted
    resolved = [named_tap(taps, name, model) for name in names]
    return tuple(dict.fromkeys(resolved))


def probe_split(n_users: int = 28, n_items: int = 1021, seed: int = 0) -> PreparedData:
    """Returns a small synthetic split, for probing a model where no dataset is given.

    Users have a gender and an age, items genres. Every user has 6 to 9 train positives, one validation and one test row;
    sizes differ from the usual layer widths, and the catalogue is wider than a hidden layer.
    """
    generator = np.random.default_rng(seed)
    users: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    items: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for user in range(n_users):
        drawn = generator.permutation(n_items)[: 8 + user % 4].tolist()
        for part, chosen in (("train", drawn[:-2]), ("valid", drawn[-2:-1]), ("test", drawn[-1:])):
            users[part] += [user] * len(chosen)
            items[part] += chosen

    def rows(part: str) -> Rows:
        count = len(users[part])
        return Rows(
            np.asarray(users[part], dtype=np.int32),
            np.asarray(items[part], dtype=np.int32),
            np.full(count, 5.0, dtype=np.float32),
            np.arange(count) + {"train": 0.0, "valid": 1e6, "test": 2e6}[part],
            np.ones(count, dtype=bool),
        )

    user_tokens = np.asarray([f"u{i:03d}" for i in range(n_users)])
    item_tokens = np.asarray([f"i{i:03d}" for i in range(n_items)])
    return PreparedData(
        key="probe",
        name="probe",
        domain="generic",
        user_tokens=user_tokens,
        item_tokens=item_tokens,
        train=rows("train"),
        train_full=rows("train"),
        valid=rows("valid"),
        test=rows("test"),
        users=pa.table(
            {
                "user_id": user_tokens.tolist(),
                "gender": [str(value) for value in generator.integers(0, 2, n_users)],
                "age": [str(value) for value in generator.integers(0, 6, n_users)],
            }
        ),
        items=pa.table(
            {"item_id": item_tokens.tolist(), "genres": [[f"g{g}" for g in row] for row in generator.integers(0, 9, (n_items, 3)).tolist()]}
        ),
        notes={},
    )
