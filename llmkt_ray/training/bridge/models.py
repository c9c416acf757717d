"""Building RecBole's models, and what the trial asks of a built one."""

import importlib
import inspect
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import nn

from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.training.bridge import graphs, shims
from llmkt_ray.training.bridge.dataset import PADDING, QUIET, SplitDataset
from llmkt_ray.training.bridge.knowledge import KnowledgeInput, with_knowledge
from llmkt_ray.training.bridge.own_sampling import RecBoleLoader, has_own_negatives, transform_of
from llmkt_ray.training.bridge.own_trainers import Pass, Sizes, trainer_of
from llmkt_ray.training.bridge.registry import MODELS, NOT_OFFERED, Batches, Family, ModelEntry, model_entry
from llmkt_ray.training.bridge.scoring import PAIR_SCORES
from llmkt_ray.training.bridge.sequences import SequenceTable, check_order
from llmkt_ray.training.bridge.settings import Settings, make_settings, negatives_problem

shims.install()

from recbole.data.interaction import Interaction, cat_interactions  # noqa: E402
from recbole.model.abstract_recommender import AbstractRecommender  # noqa: E402
from recbole.utils import InputType, ModelType, get_model  # noqa: E402

_FAMILIES: dict[Any, Family] = {
    ModelType.GENERAL: "general", ModelType.TRADITIONAL: "general", ModelType.CONTEXT: "context", ModelType.SEQUENTIAL: "sequential",
}  # fmt: skip
_GENERAL_BATCHES: dict[Any, Batches] = {InputType.PAIRWISE: "pairwise", InputType.POINTWISE: "pointwise", InputType.LISTWISE: "users"}


class BuiltModel:
    """A RecBole model on its dataset, with the few operations that training and evaluation need.

    Attributes:
        entry: name, family and kind of batches.
        module: the model itself.
        settings: its resolved settings.
        dataset: its RecBole dataset (train rows only).
        trainer: RecBole's trainer, where it is one of the model's own; otherwise empty.
        passes: from an epoch, 1-based, to what it consists of.
        stages: what is trained before the first epoch.
        n_users, n_items: counts without RecBole's padding.
        device: where the model lives.
    """

    def __init__(
        self, entry: ModelEntry, module: nn.Module, settings: Settings, dataset: SplitDataset, device: torch.device, transform: Any = None
    ) -> None:
        self.entry, self.module, self.settings, self.dataset, self.device = entry, module, settings, dataset, device
        self._transform = transform
        self.n_users, self.n_items = dataset.user_num - PADDING, dataset.item_num - PADDING
        self._trainer = trainer_of(type(module))
        self.trainer = self._trainer.name
        self.passes, self.stages = self._trainer.passes(settings), self._trainer.stages(settings)
        self.begin()
        self._recommender: Any = module
        self._user_field, self._item_field = dataset.uid_field, dataset.iid_field
        self._label_field, self._negative_field = dataset.label_field, settings["NEG_PREFIX"] + dataset.iid_field
        own = entry.name in PAIR_SCORES and type(module).__module__.startswith("recbole.")
        self._all_pairs = PAIR_SCORES[entry.name] if own else None
        self._sequence_field = dataset.iid_field + settings["LIST_SUFFIX"]
        self._length_field = settings["ITEM_LIST_LENGTH_FIELD"]
        self._scores_pairs = False
        self._features = [
            (id_field, field.name, field.values.to(device))
            for id_field, fields in ((self._user_field, dataset.user_fields), (self._item_field, dataset.item_fields))
            for field in fields
        ]

    @property
    def negatives_per_row(self) -> int:
        """How many negatives are drawn for each positive; 0 where the model draws none."""
        sampling = self.settings["train_neg_sample_args"]
        if self.entry.batches == "sequences":
            loss = self.settings["loss_type"]
            if not loss:  # TransRec has one loss and no setting for it
                return int(getattr(self._recommender, "input_type", None) is InputType.PAIRWISE)
            return int(loss == "BPR")
        if self.entry.batches not in ("pairwise", "pointwise") or sampling["distribution"] in (None, "none", "None"):
            return 0
        return int(sampling["sample_num"])

    @property
    def path(self) -> str:
        """Where its batches come from: "lean" (ours) or "recbole" (a sampling of its own, see `own_sampling`)."""
        return "recbole" if self._transform is not None or has_own_negatives(self.entry, self.settings) else "lean"

    def begin(self) -> None:
        """Puts the model into the state that a trial's epochs train and that is ranked with; for use after its `stages`."""
        self._trainer.begin(self.module)

    def training_problem(self, last_batch: int) -> str | None:
        """Returns why the model cannot be trained on its data in batches of which the last, the smallest, has so many rows, or None."""
        return self._trainer.problem(self.settings, Sizes(self.n_users, self.n_items, last_batch))

    def loader(self, batch_size: int) -> RecBoleLoader | None:
        """Returns RecBole's loader where the model's negatives are not those of the lean path, otherwise None."""
        if not has_own_negatives(self.entry, self.settings):
            return None
        return RecBoleLoader(self.entry, self.module, self.settings, self.dataset, batch_size)

    def sampled(self, batch: Interaction) -> tuple[torch.Tensor, Interaction]:
        """Returns a batch of RecBole's loader on the model's device, its users `(batch,)` first."""
        moved = batch.to(self.device)
        return moved[self._user_field], moved

    def pairs(self, users: torch.Tensor, items: torch.Tensor, negatives: torch.Tensor) -> Interaction:
        """Returns a pairwise batch from RecBole ids `(batch,)` each."""
        return Interaction({self._user_field: users, self._item_field: items, self._negative_field: negatives})

    def labelled(self, users: torch.Tensor, items: torch.Tensor, labels: torch.Tensor) -> Interaction:
        """Returns a pointwise batch from RecBole ids and float labels `(batch,)` each."""
        return self._featured({self._user_field: users, self._item_field: items, self._label_field: labels})

    def next_items(
        self,
        users: torch.Tensor,
        sequences: torch.Tensor,
        lengths: torch.Tensor,
        items: torch.Tensor,
        negatives: torch.Tensor | None = None,
    ) -> Interaction:
        """Returns a sequential batch from RecBole ids: histories `(batch, longest)`, their lengths, and what came next."""
        columns = {self._user_field: users, self._item_field: items, self._sequence_field: sequences, self._length_field: lengths}
        return Interaction(columns if negatives is None else columns | {self._negative_field: negatives})

    def transformed(self, batch: Interaction, *, by_row: bool = False) -> Interaction:
        """Returns a training batch after the model's own transform, which draws from the global generators; mostly the batch itself.

        Args:
            batch: the batch.
            by_row: each row's draws come from its place alone, so that they do not shift with the length of other rows' histories; the
                global generator of `random` is seeded for that.
        """
        if self._transform is None:
            return batch
        if not by_row:
            return self._transform(self.dataset, batch)
        rows = []
        for place in range(len(batch)):
            random.seed(place)
            rows.append(self._transform(self.dataset, batch[place : place + 1]))
        return cat_interactions(rows)

    def _featured(self, columns: dict[str, torch.Tensor]) -> Interaction:
        """Returns a batch with the features of its users and items joined, for context-aware models."""
        for id_field, name, values in self._features:
            columns[name] = values[columns[id_field]]
        return Interaction(columns)

    def rows(self, users: torch.Tensor) -> Interaction:
        """Returns a batch of users alone, RecBole ids `(batch,)`."""
        return Interaction({self._user_field: users})

    def loss(self, batch: Interaction, of: Pass | None = None) -> torch.Tensor:
        """Returns the model's own training loss of a batch, a scalar; parts of a loss are summed as RecBole does.

        Args:
            batch: the batch.
            of: the pass of the epoch; the first one of the first epoch if not given.
        """
        chosen = of or self.passes(1)[0]
        loss = self._recommender.calculate_loss(batch, **chosen.options)
        return sum(loss[: chosen.terms]) if isinstance(loss, tuple) else loss  # type: ignore[return-value]

    def scorer(self, history: Sequence[Rows]) -> Callable[[torch.Tensor], torch.Tensor]:
        """Returns the scoring function of an evaluation: from user indices to scores of all items.

        Args:
            history: what is known before the evaluated part; sequential models rank what follows it, others were trained on
                what they know.
        """
        if self.entry.family != "sequential":
            return self.scores
        table = SequenceTable.of(list(history), self.settings["MAX_ITEM_LIST_LENGTH"])

        @torch.no_grad()
        def score(users: torch.Tensor) -> torch.Tensor:
            sequences, lengths = table.whole(users.numpy())
            ids = users.to(self.device) + PADDING
            batch = self.next_items(ids, sequences.to(self.device), lengths.to(self.device), torch.zeros_like(ids))
            scores: torch.Tensor = self._recommender.full_sort_predict(batch)
            return scores.view(len(ids), -1)[:, PADDING : self.n_items + PADDING]

        return score

    @torch.no_grad()
    def probabilities(self, users: torch.Tensor, items: torch.Tensor, rows_at_once: int = 1 << 14) -> torch.Tensor:
        """Returns the model's `predict` for pairs of indices, int64 `(n,)` each: float32 `(n,)`, in [0, 1] for pointwise models."""
        parts = []
        for start in range(0, len(users), rows_at_once):
            pair = (column[start : start + rows_at_once].to(self.device) + PADDING for column in (users, items))
            parts.append(self._recommender.predict(self._featured(dict(zip((self._user_field, self._item_field), pair, strict=True)))))
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def scores(self, users: torch.Tensor) -> torch.Tensor:
        """Returns the scores of all items for users.

        Args:
            users: indices of the split, int64 `(block,)`.

        Returns:
            float32 `(block, n_items)`, in the index order of the split; the caller may overwrite it.
        """
        ids = users.to(self.device) + PADDING
        if self._all_pairs is not None:
            return self._all_pairs(self.module, ids)
        if not self._scores_pairs:
            try:
                scores: torch.Tensor = self._recommender.full_sort_predict(self.rows(ids))
                return scores.view(len(ids), -1)[:, PADDING:]
            except NotImplementedError:
                self._scores_pairs = True
        return self._pair_scores(ids)

    def _pair_scores(self, ids: torch.Tensor, pairs_at_once: int = 1 << 12) -> torch.Tensor:
        """Returns scores from `predict`, for models that can only score pairs: `pairs_at_once` keeps them in cache."""
        items = torch.arange(PADDING, self.n_items + PADDING, device=self.device)
        scores = torch.empty(len(ids), self.n_items, device=self.device)
        step = max(1, pairs_at_once // self.n_items)
        for start in range(0, len(ids), step):
            block = ids[start : start + step]
            batch = self._featured({self._user_field: block.repeat_interleave(self.n_items), self._item_field: items.repeat(len(block))})
            scores[start : start + step] = self._recommender.predict(batch).view(len(block), -1)
        return scores

    def count_items(self, counts: np.ndarray) -> None:
        """Gives Pop its popularity: train positives of each item, int `(n_items,)`; other models ignore it.

        RecBole's Pop counts an item once a batch, and sampled negatives too.
        """
        if self.entry.name == "Pop":
            padded = np.concatenate([np.zeros(PADDING, dtype=np.int64), counts.astype(np.int64)])
            self._recommender.item_cnt = torch.from_numpy(padded)[:, None].to(self.device)
            self._recommender.max_cnt = self._recommender.item_cnt.max(dim=0)[0]

    def forget_cached(self) -> None:
        """Drops propagated embeddings that a model keeps between evaluations, for use after its weights were replaced."""
        for name in ("restore_user_e", "restore_item_e", "i_embedding"):
            if name in self.module.__dict__:
                setattr(self.module, name, None)


def load_class(class_path: str) -> type[nn.Module]:
    """Imports a model class of the user's own, `package.module:Class`.

    Raises:
        TrainingError: there is no such module or class, or it is not a model.
    """
    module_name, _, class_name = class_path.partition(":")
    try:
        loaded = importlib.import_module(module_name).__dict__[class_name]
    except Exception as error:  # the module is the user's own code: importing it may raise anything
        said = str(error) if isinstance(error, ImportError | KeyError) else f"{type(error).__name__}: {error}"
        raise TrainingError(f"model class {class_path!r} cannot be imported ({said}); the form is package.module:Class") from error
    if not (isinstance(loaded, type) and issubclass(loaded, AbstractRecommender)):
        raise TrainingError(
            f"{class_path!r} is not a RecBole model class; it must be a subclass of recbole's GeneralRecommender, ContextRecommender or "
            "SequentialRecommender"
        )
    return loaded


@cache
def class_digest(class_path: str | None) -> str | None:
    """Returns the SHA-256 of the source of the module that holds a class of the user's own; None where there is no class or no source.

    Taken once a process, which has imported the code once; code that the module imports from elsewhere is not in it.

    Raises:
        TrainingError: see `class_of`.
    """
    if class_path is None:
        return None
    own, _ = class_of(class_path, class_path)
    try:
        return sha256(inspect.getsource(sys.modules[own.__module__]).encode()).hexdigest()
    except (OSError, TypeError):  # compiled
        return None


def class_of(model: str, class_path: str | None) -> tuple[Any, ModelEntry]:
    """Imports a model's class, RecBole's or the user's own, and returns it with its entry.

    Raises:
        TrainingError: there is no such model, or it is not a class that can be trained.
    """
    # Importing RecBole's sequential models turns torch's anomaly detection on for the whole process (sine.py, line 25).
    with torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled()):
        if class_path is None:
            entry = model_entry(model)
            return get_model(entry.name), entry
        own = load_class(class_path)
        return own, _entry_of(own, model)


def _declared(model_class: Any, name: str) -> Any:
    """Returns a class attribute of a model class or of what it is derived from, None where there is none (torch has a method `type`)."""
    return next((vars(base)[name] for base in model_class.__mro__ if base is not nn.Module and name in vars(base)), None)


def _entry_of(model_class: Any, name: str) -> ModelEntry:
    """Returns the entry of a class that is not RecBole's own, from the attributes RecBole requires of it."""
    kind = _declared(model_class, "type")
    family = _FAMILIES.get(kind)
    if family is None:
        raise TrainingError(f"model class {name} is of type {kind}, which is not supported; supported: {sorted(set(_FAMILIES.values()))}")
    if kind == ModelType.TRADITIONAL:
        return ModelEntry(name, family, "reference")
    if family != "general":
        return ModelEntry(name, family, "pointwise" if family == "context" else "sequences")
    for base in model_class.__mro__[1:]:
        if base.__name__ in NOT_OFFERED:
            raise TrainingError(f"model class {name} is a {base.__name__}, which is not offered: {NOT_OFFERED[base.__name__]}")
        if base.__name__ in MODELS:
            return ModelEntry(name, family, MODELS[base.__name__].batches)
    if any(base.__name__ == "AutoEncoderMixin" for base in model_class.__mro__):
        return ModelEntry(name, family, "users")
    learns_from = _declared(model_class, "input_type")
    if learns_from not in _GENERAL_BATCHES:
        raise TrainingError(
            f"model class {name} does not say what it learns from; set its input_type to InputType.PAIRWISE, InputType.POINTWISE or "
            "InputType.LISTWISE (recbole.utils)"
        )
    return ModelEntry(name, family, _GENERAL_BATCHES[learns_from])


def build_model(
    model: str,
    data: PreparedData,
    *,
    hyperparameters: Mapping[str, Any],
    seed: int,
    device: str = "cpu",
    class_path: str | None = None,
    batch_size: int | None = None,
    knowledge: KnowledgeInput | None = None,
) -> BuiltModel:
    """Builds a model on the train rows of a split, its weights drawn from `seed` alone.

    The global generators of torch, numpy and random are seeded here, because RecBole's models draw from them; the trial
    restores them (see `isolation`).

    Args:
        model: RecBole's name of it.
        data: the split.
        hyperparameters: RecBole's settings of the model, by their names.
        seed: of the weights.
        device: "cpu" or "cuda".
        class_path: a class of the user's own in place of RecBole's.
        batch_size: rows a training batch.
        knowledge: what the arms of KAR join to the model's features.

    Raises:
        TrainingError: the model or a hyper-parameter is unknown, the model refuses its settings, or it takes no knowledge.
    """
    model_class, entry = class_of(model, class_path)
    shims.mend(model_class)
    graphs.install(model_class)
    problem = negatives_problem(hyperparameters, entry)
    if problem:
        raise TrainingError(problem)
    settings = make_settings(
        model, family=entry.family, hyperparameters=hyperparameters, dataset=data.name, device=device, own_class=class_path is not None
    )
    if entry.family == "sequential":
        check_order(data)
    if batch_size is not None:
        settings["train_batch_size"] = batch_size  # DGCF sizes a sample by it
    dataset = SplitDataset(settings, data, data.train.positives())
    transform = transform_of(settings)

    def drawn(of: Any) -> Any:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - RecBole's models draw from the global generator
        torch.manual_seed(seed)
        return of(settings, dataset)

    try:
        module = drawn(model_class)
        if knowledge is not None:
            module = _starting_as(module, drawn(with_knowledge(model_class, knowledge)))
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, NotImplementedError, RuntimeError) as error:
        raise TrainingError(f"{model} cannot be built with {dict(hyperparameters)}: {type(error).__name__}: {error}") from error
    for part in module.modules():
        if "logger" in part.__dict__:
            part.logger = QUIET
    return BuiltModel(entry, module.to(torch.device(device)), settings, dataset, torch.device(device), transform)


def _starting_as(plain: nn.Module, joined: Any) -> Any:
    """Returns a model with knowledge fields whose weights start as its twin's without them, where both have the same.

    The adaptor draws before the layers do, so that otherwise no weight of an arm of KAR would be that of its twins.
    """
    of_plain = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in joined.named_parameters():
            if name in of_plain and of_plain[name].shape == parameter.shape:
                parameter.copy_(of_plain[name])
    return joined
