"""From a trial's targets to the transfer manager: control arm, alignment of ids, tap, weights, balance."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.controls import control_targets
from llmkt_ray.embeddings.targets import Targets
from llmkt_ray.errors import EmbeddingError, TrainingError
from llmkt_ray.seeds import derive_seed
from llmkt_ray.study import INPUT_ARMS, KAR_ARMS, OWN_TARGET_ARMS, PLAIN_ARMS
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.dataset import PADDING
from llmkt_ray.training.bridge.models import BuiltModel
from llmkt_ray.training.isolation import seed_globals
from llmkt_ray.training.layers import model_taps
from llmkt_ray.training.spec import TrialArtifacts, TrialSpec
from llmkt_ray.transfer.loss import WEIGHTS
from llmkt_ray.transfer.manager import TransferManager, TransferSetup
from llmkt_ray.transfer.phases import PhasePlan
from llmkt_ray.transfer.taps import named_tap

WITHOUT_TRANSFER = (*PLAIN_ARMS, *INPUT_ARMS, "reference")
"""Arms without a transfer loss."""


def make_transfer(
    spec: TrialSpec, plan: PhasePlan, model: BuiltModel, batches: BatchSource, data: PreparedData, artifacts: TrialArtifacts
) -> TransferManager:
    """Returns the transfer manager of a trial, balanced where the spec says so; of an arm without transfer, one that does nothing.

    Raises:
        TrainingError: alpha, arm, layer and targets of the spec contradict each other.
        EmbeddingError: the targets were made for other users than the split's.
        LayerError: the tap cannot be used, or its width does not fit.
    """
    if spec.arm in WITHOUT_TRANSFER:
        if spec.alpha:
            raise TrainingError(
                f"arm {spec.arm!r} transfers nothing, but its alpha is {spec.alpha:g}; set alpha to 0 or choose another arm"
            )
        return TransferManager(model.module, plan, None)
    targets = artifacts.targets
    if not spec.alpha or spec.layer is None or targets is None:
        raise TrainingError(
            f"arm {spec.arm!r} transfers knowledge, so it needs alpha above 0, a layer and targets, but got alpha {spec.alpha:g}, "
            f"layer {spec.layer!r} and {'no ' if targets is None else ''}targets; without transfer the arm is alpha0"
        )
    if targets.key != spec.targets_key:
        raise TrainingError(f"the trial is specified with targets {spec.targets_key!r}, but was given {targets.key!r}")
    treated = targets
    if spec.arm in OWN_TARGET_ARMS:
        if artifacts.twin is None or artifacts.twin.key != spec.twin_key:
            raise TrainingError(f"arm {spec.arm!r} shares the balance of its treated twin, so it needs the targets {spec.twin_key!r}")
        treated = artifacts.twin
        # A twin differs in one thing only: whom the treated arm teaches nothing, it teaches nothing (METHOD.md, section 4).
        targets = replace(targets, present=np.asarray(targets.present) & np.asarray(treated.present))
    else:
        targets = control_targets(
            "treated" if spec.arm in KAR_ARMS else spec.arm, targets, data, derive_seed(spec.seed, "targets", spec.arm)
        )
    rows = torch.from_numpy(np.repeat(np.arange(model.n_users) + PADDING, batches.row_counts()))

    def table_and_weights(of: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        table, present = in_model_ids(of, data, model)
        return table, WEIGHTS[spec.weights](rows, model.n_users + PADDING, present).to(model.device)

    table, weights = table_and_weights(targets)
    setup = TransferSetup(
        tap=named_tap(model_taps(model, data), spec.layer, spec.model),
        targets=table,
        weights=weights,
        alpha=spec.alpha,
        loss=spec.loss,
        projection=spec.projection,
        generator=torch.Generator().manual_seed(derive_seed(spec.seed, "projection")),
    )
    transfer = TransferManager(model.module, plan, setup)
    if spec.balance == "initial":
        transfer.balance(_first_losses(spec, model, batches), *table_and_weights(treated))
    return transfer


def in_model_ids(targets: Targets, data: PreparedData, model: BuiltModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns targets by RecBole's user ids, joined by token (METHOD.md, trap 5).

    Returns:
        float32 `(n_users + 1, d)` on the model's device, zero rows for padding and users without a profile, and bool
        `(n_users + 1,)`: who has a profile.

    Raises:
        EmbeddingError: the tokens are not the split's, in its order, or a present row is not finite.
    """
    if not np.array_equal(targets.user_tokens, data.user_tokens):
        raise EmbeddingError(
            f"targets {targets.key} list {len(targets.user_tokens)} users in another order or other users than split {data.key} "
            f"({data.n_users} users): their rows would teach the wrong users; delete that artifact and run again"
        )
    ids = torch.from_numpy(model.dataset.token2id(model.dataset.uid_field, data.user_tokens.tolist()))
    present = torch.zeros(model.n_users + PADDING, dtype=torch.bool)
    present[ids] = torch.from_numpy(np.array(targets.present, dtype=bool))
    matrix = torch.zeros(model.n_users + PADDING, targets.matrix.shape[1])
    matrix[ids] = torch.from_numpy(np.array(targets.matrix, dtype=np.float32))
    if not bool(torch.isfinite(matrix[present]).all()):
        raise EmbeddingError(f"targets {targets.key} hold NaN or infinite values; delete that artifact and run again")
    matrix[~present] = 0.0
    return matrix.to(model.device), present


def _first_losses(spec: TrialSpec, model: BuiltModel, batches: BatchSource) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yields the losses of the first epoch's batches at initialisation, with users and lengths; the balance stops after ten."""
    seed_globals(derive_seed(spec.seed, "dropout", 1))
    model.module.train()
    first = model.passes(1)[0]
    first.before(model.module)
    for batch in batches.epoch(1):
        loss = model.loss(batch.interaction, first)
        yield (loss, batch.users) if batch.lengths is None else (loss, batch.users, batch.lengths)
