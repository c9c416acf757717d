"""Knowledge as feature fields of RecBole's context-aware models: KAR and the static profile (METHOD.md, section 4 and trap 17).

The model's source stays as it is. RecBole's context-aware models ask `ContextRecommender` for the embeddings of their fields and size
their layers by `num_feature_field`: a class between the two adds fields to both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmkt_ray.errors import TrainingError
from llmkt_ray.study import AdaptorConfig
from llmkt_ray.training.bridge import shims
from llmkt_ray.transfer.kar import HybridExpertAdaptor

shims.install()

from recbole.model.abstract_recommender import ContextRecommender  # noqa: E402

TAKES_FIELDS = ("AFM", "AutoInt", "DCN", "DCNV2", "DeepFM", "FM", "FNN", "NFM", "PNN", "WideDeep", "xDeepFM")
"""Context-aware models that read all fields as one table of embeddings and size their layers by the number of fields."""


@dataclass(frozen=True)
class KnowledgeInput:
    """What a model is built with.

    Attributes:
        arm: "static_profile", or "kar" or "kar_treated".
        users: float32 `(n_users + 1, dims)` by RecBole's user ids; zero rows for padding and users without a profile.
        items: the same of items.
        adaptor: KAR's sizes.
    """

    arm: str
    users: Tensor
    items: Tensor
    adaptor: AdaptorConfig


class KnowledgeFields(nn.Module):
    """The knowledge of a batch as vectors of the model's embedding size.

    `static_profile` is one field, a learned linear map of the user's vector; KAR two, by its adaptor. In evaluation the vectors of
    all users and items are computed once, as a system that serves the model would keep them (KAR, section 4.4).

    Args:
        given: the vectors.
        width: the model's embedding size.
    """

    def __init__(self, given: KnowledgeInput, width: int) -> None:
        super().__init__()
        self.is_static = given.arm == "static_profile"
        self.register_buffer("users", given.users, persistent=False)
        self.register_buffer("items", given.items, persistent=False)
        dims, sizes = given.users.shape[1], given.adaptor
        if self.is_static:
            self.projection = nn.Linear(dims, width)
        else:
            self.adaptor = HybridExpertAdaptor(dims, width, shared=sizes.shared_experts, own=sizes.own_experts, hidden=sizes.hidden)
        self.n_fields = 1 if self.is_static else 2
        self._kept: tuple[Tensor, ...] = ()

    def train(self, mode: bool = True) -> "KnowledgeFields":
        """Changes between training and evaluation; what was kept of other weights is dropped either way."""
        self._kept = ()
        return super().train(mode)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Returns the fields `(batch, n_fields, width)` of RecBole ids `(batch,)` each."""
        if self.training or torch.is_grad_enabled():
            made = self._fields(self.get_buffer("users")[users], self.get_buffer("items")[items])
            return torch.stack(made, dim=1)
        if not self._kept:
            self._kept = self._fields(self.get_buffer("users"), self.get_buffer("items"))
        return torch.stack([table[ids] for table, ids in zip(self._kept, (users, items), strict=False)], dim=1)

    def _fields(self, users: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        if self.is_static:
            return (self.projection(users),)
        return (self.adaptor.preference(users), self.adaptor.item(items))


class JoinedFields(ContextRecommender):  # type: ignore[misc]  # RecBole has no types
    """Between a model and RecBole's base: called by both constructors and asked for the fields.

    Attributes:
        given: what is joined; a class attribute, because RecBole's constructors take no more than settings and dataset.
    """

    given: KnowledgeInput

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.knowledge = KnowledgeFields(self.given, self.embedding_size)
        self._id_fields = (dataset.uid_field, dataset.iid_field)
        self.num_feature_field += self.knowledge.n_fields

    def concat_embed_input_fields(self, interaction: Any) -> Tensor:
        """Returns the fields' embeddings `(batch, fields, width)`, the knowledge last."""
        own = super().concat_embed_input_fields(interaction)
        return torch.cat([own, self.knowledge(*(interaction[field] for field in self._id_fields))], dim=1)


def with_knowledge(model_class: Any, given: KnowledgeInput) -> Any:
    """Returns a subclass of a context-aware model that has the knowledge as further fields.

    Raises:
        TrainingError: the model has no feature embeddings that fields could be joined to.
    """
    problem = knowledge_problem(given.arm, model_class.__name__, [base.__name__ for base in model_class.__mro__])
    if problem:
        raise TrainingError(problem)
    return type(model_class.__name__, (model_class, JoinedFields), {"__module__": __name__, "given": given})


def knowledge_problem(arm: str, model: str, bases: Sequence[str] = ()) -> str | None:
    """Returns why knowledge cannot be a feature of a model, as a sentence with the remedy, or None.

    Args:
        arm: one of `KAR_ARMS`.
        model: the model's name.
        bases: names of the classes that a model class of the user's own is derived from.
    """
    if any(name in TAKES_FIELDS for name in (model, *bases)):
        return None
    return (
        f"control {arm!r} is impossible with {model}: it has no table of feature embeddings that knowledge could be joined to; it is for "
        f"{', '.join(TAKES_FIELDS)}; leave {arm!r} out of `controls`, or give the model `controls` of its own without it"
    )
