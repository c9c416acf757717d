"""Direct input, the paper's rival (METHOD.md, section 4): the profile as an input of the model, without a transfer loss.

`input_init`: the user table starts from the targets and is then trained as ever.
`input_concat`: the projected profile is joined to the user's vector. A concatenation [e_u, t_u] and the linear layer that
brings it back to the model's width are together e_u + V t_u, because e_u is free: this is what is trained, V from zero, so that
the arm starts from the very weights of its twins. It needs profiles at serving time, which knowledge transfer does not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.targets import Targets
from llmkt_ray.errors import TrainingError
from llmkt_ray.study import KAR_ARMS, AdaptorConfig
from llmkt_ray.training.bridge.dataset import PADDING
from llmkt_ray.training.bridge.knowledge import KnowledgeInput
from llmkt_ray.training.bridge.models import BuiltModel, build_model
from llmkt_ray.training.bridge.user_tables import UserTable, user_tables
from llmkt_ray.training.layers import to_probe
from llmkt_ray.training.spec import TrialArtifacts, TrialSpec
from llmkt_ray.training.teacher import in_model_ids
from llmkt_ray.transfer.state import random_state_kept

_PROBE_SEED = 1


class ProfileJoined(nn.Module):
    """A user table with the projected profile added to each user's row; a parametrization of the table's weight.

    Args:
        table: where the users' rows are.
        targets: `(n_user_ids, dims)` in the model's user ids; zero rows for padding and users without a profile.
    """

    def __init__(self, table: UserTable, targets: Tensor) -> None:
        super().__init__()
        self._first, self._ids = table.first, len(targets)
        self.register_buffer("targets", targets, persistent=False)
        self.projection = nn.Parameter(torch.zeros(table.width, targets.shape[1], device=targets.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the table `(rows, width)` that the model sees."""
        joined = torch.addmm(weight[self._first : self._first + self._ids], self.get_buffer("targets"), self.projection.T)
        if self._ids == len(weight):
            return joined
        return torch.cat([weight[: self._first], joined, weight[self._first + self._ids :]])


def give_profiles(spec: TrialSpec, model: BuiltModel, data: PreparedData, targets: Targets | None) -> None:
    """Gives a freshly built model its profiles as input, as the arm of the spec says.

    Raises:
        TrainingError: the trial has no targets, the model no user table, or the widths do not fit.
        EmbeddingError: the targets belong to other users.
    """
    if targets is None or targets.key != spec.targets_key:
        raise TrainingError(
            f"arm {spec.arm!r} puts profiles into the model, so it needs targets {spec.targets_key!r}, but was given "
            f"{'none' if targets is None else targets.key}"
        )
    tables = user_tables(model)
    problem = input_problem(spec.arm, spec.model, tables, targets.dims)
    if problem:
        raise TrainingError(problem)
    matrix, present = in_model_ids(targets, data, model)
    for table in tables:
        embedding = model.module.get_submodule(table.name)
        if spec.arm == "input_init":
            _initialise(embedding, table, matrix, present.to(matrix.device))
        else:
            parametrize.register_parametrization(embedding, "weight", ProfileJoined(table, matrix))


def knowledge_input(spec: TrialSpec, artifacts: TrialArtifacts, device: str) -> KnowledgeInput | None:
    """Returns what a model of the arms of KAR is built with; None for the other arms.

    Raises:
        TrainingError: the trial has no knowledge, or other than its spec says, or it is of other users or items.
    """
    if spec.arm not in KAR_ARMS:
        return None
    knowledge, data = artifacts.knowledge, artifacts.data
    if knowledge is None or knowledge.key != spec.knowledge_key:
        raise TrainingError(
            f"arm {spec.arm!r} reads knowledge as features, so it needs the vectors {spec.knowledge_key!r}, but was given "
            f"{'none' if knowledge is None else knowledge.key}"
        )
    for what, ours, theirs in (
        ("users", data.user_tokens, knowledge.user_tokens), ("items", data.item_tokens, knowledge.item_tokens),
    ):  # fmt: skip
        if not np.array_equal(ours, theirs):
            raise TrainingError(
                f"knowledge {knowledge.key} lists other {what} than split {data.key}, or in another order; delete it and run again"
            )
    return KnowledgeInput(
        spec.arm, _by_id(knowledge.users, device), _by_id(knowledge.items, device), spec.adaptor or AdaptorConfig()
    )  # fmt: skip


def _by_id(vectors: np.ndarray, device: str) -> Tensor:
    """Returns vectors in index order `(n, dims)` by RecBole's ids `(n + 1, dims)`, zeros for its padding."""
    table = torch.zeros(len(vectors) + PADDING, vectors.shape[1])
    table[PADDING:] = torch.from_numpy(np.array(vectors, dtype=np.float32))
    return table.to(device)


def bake(model: nn.Module) -> None:
    """Writes joined profiles into the user tables, in place: the model is then a plain one, with the same scores."""
    for part in list(model.modules()):
        if parametrize.is_parametrized(part, "weight") and isinstance(_joined(part), ProfileJoined):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)


def _joined(part: nn.Module) -> nn.Module:
    return part.get_submodule("parametrizations.weight.0")


def _initialise(embedding: nn.Module, table: UserTable, matrix: Tensor, present: Tensor) -> None:
    """Replaces the rows of users with a profile by their targets, on the scale of the model's own initialisation.

    Standardised targets have a spread of 1 a unit, a user table one of some hundredths: at their own scale they would not be a
    start for training but a different model.
    """
    with torch.no_grad():
        weight = embedding.get_parameter("weight")
        rows = weight[table.first : table.first + len(matrix)]
        own, wanted = rows[present], matrix[present]
        rows[present] = wanted * (own.square().mean() / wanted.square().mean().clamp(min=torch.finfo(wanted.dtype).tiny)).sqrt()


def input_problem(arm: str, model: str, tables: Sequence[UserTable], dims: int) -> str | None:
    """Returns why an input arm is impossible with a model and targets of a width, as a sentence with the remedy, or None."""
    if not tables:
        return (
            f"control {arm!r} is impossible with {model}: it has no table with a row for each user, the user is computed from the "
            f"history; leave {arm!r} out of `controls`, or give the model `controls` of its own without it"
        )
    widths = sorted({table.width for table in tables})
    shown = ", ".join(f"{table.name} {table.width}" for table in tables)
    if arm == "input_init" and len(widths) > 1:
        return (
            f"control 'input_init' is impossible with {model}: its user tables differ in width ({shown}), and one target cannot "
            "initialise them all; set its embedding sizes equal, or give the model `controls` of its own without it"
        )
    if arm == "input_init" and widths[0] != dims:
        return (
            f"control 'input_init' needs targets as wide as the user table of {model} ({shown}), but they are {dims} wide; "
            f"set reduction.dims to 'layer' or {widths[0]}, or give the model `controls` of its own without it"
        )
    return None


def probe_tables(
    model: str, data: PreparedData | None, hyperparameters: Mapping[str, Any], class_path: str | None = None
) -> tuple[UserTable, ...]:
    """Builds a model and returns its user tables; see `layers.probe_layers` for the arguments.

    Raises:
        TrainingError: the model cannot be built.
    """
    split, settings = to_probe(data, hyperparameters)
    with random_state_kept():
        return user_tables(build_model(model, split, hyperparameters=settings, seed=_PROBE_SEED, class_path=class_path))
