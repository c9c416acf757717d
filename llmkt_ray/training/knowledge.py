"""How much a layer knows about the profiles already, after plain training without any transfer.

A tap that holds the profile's information before it is taught gains little from being taught it; one that holds none may
be too far from the user. Both figures are per tap, between its rows and the users' targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.targets import Targets
from llmkt_ray.errors import TrainingError
from llmkt_ray.seeds import derive_seed
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.dataset import PADDING
from llmkt_ray.training.bridge.models import BuiltModel, build_model
from llmkt_ray.training.layers import RecBoleProbe, model_taps
from llmkt_ray.transfer.hook import HookManager
from llmkt_ray.transfer.loss import cka
from llmkt_ray.transfer.state import random_state_kept, untouched
from llmkt_ray.transfer.taps import Tap, candidates

FOLDS = 5
_USERS_AT_ONCE = 256
_PENALTIES = np.logspace(-2, 4, 7)


@dataclass(frozen=True)
class Knowledge:
    """What one tap knows about the targets.

    Attributes:
        tap: the tap.
        cka: linear CKA between its rows and the targets, in [0, 1]: similarity of the two geometries.
        r2: R2 of a ridge regression from its rows to the targets on held-out users, at most 1; 0 or less: nothing.
        n_users: users with a profile and a training row.
    """

    tap: Tap
    cka: float
    r2: float
    n_users: int


def probe_knowledge(
    model: str,
    data: PreparedData,
    targets: Targets,
    *,
    hyperparameters: Mapping[str, Any],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    class_path: str | None = None,
) -> tuple[Knowledge, ...]:
    """Trains a model plainly and returns what each of its user-aligned taps then knows, in forward order.

    Raises:
        TrainingError: the model cannot be built, or too few users have a profile and a training row.
        LayerError: the model has no layer.
    """
    with random_state_kept():
        built = build_model(model, data, hyperparameters=hyperparameters, seed=seed, class_path=class_path)
        taps = candidates(model_taps(built, data))
        batches = BatchSource(built, data.train.positives(), batch_size=batch_size, seed=seed)
        optimizer = torch.optim.Adam(built.module.parameters(), lr=learning_rate)
        for epoch in range(1, epochs + 1):
            torch.manual_seed(derive_seed(seed, "dropout", epoch))
            built.module.train()
            for batch in batches.epoch(epoch):
                optimizer.zero_grad(set_to_none=True)
                built.loss(batch.interaction).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return knowledge_of(built, data, targets, taps)


def knowledge_of(model: BuiltModel, data: PreparedData, targets: Targets, taps: Sequence[Tap]) -> tuple[Knowledge, ...]:
    """Returns what taps of a model, as it is, know about the targets.

    Raises:
        TrainingError: too few users have a profile and a training row.
    """
    trained = np.unique(data.train.positives().user)
    users = trained[targets.present[trained]]
    if len(users) < 2 * FOLDS:
        raise TrainingError(
            f"{len(users)} users have a profile and a training row, but at least {2 * FOLDS} are needed to measure knowledge"
        )
    wanted = np.asarray(targets.matrix[users], dtype=np.float64)
    found = []
    for tap in taps:
        rows = tap_rows(model, data, tap, users)
        regression = make_pipeline(StandardScaler(), RidgeCV(alphas=_PENALTIES))
        predicted = cross_val_predict(regression, rows, wanted, cv=KFold(FOLDS, shuffle=True, random_state=0))
        similarity = 1 - float(cka(torch.from_numpy(rows), torch.from_numpy(wanted), torch.ones(len(users), dtype=torch.float64)))
        found.append(Knowledge(tap, similarity, float(r2_score(wanted, predicted, multioutput="variance_weighted")), len(users)))
    return tuple(found)


def tap_rows(model: BuiltModel, data: PreparedData, tap: Tap, users: np.ndarray) -> np.ndarray:
    """Returns the tap's activation of users (indices of the split, `(n,)`) in evaluation mode, float64 `(n, width)`."""
    probe = RecBoleProbe(model, data)
    parts = []
    with untouched(model.module, seed=0), HookManager(model.module, tap) as hook:
        model.module.eval()
        for start in range(0, len(users), _USERS_AT_ONCE):
            block = torch.from_numpy(users[start : start + _USERS_AT_ONCE].astype(np.int64) + PADDING).to(model.device)
            tiled = block.repeat(probe.tiles)
            probe.loss(tiled, False)
            h, rows = hook.take(tiled, probe.lengths(tiled))
            assert torch.equal(rows[: len(block)], block)
            parts.append(h[: len(block)].detach().double().cpu().numpy())
    return np.concatenate(parts)
