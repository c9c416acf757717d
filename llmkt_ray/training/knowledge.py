"""How much a layer knows about the profiles already, after plain training without any transfer.

A tap that holds the profile's information before it is taught gains little from being taught it; one that holds none may
be too far from the user. Both figures are per tap, between its rows and the users' targets.
"""

from collections.abc import Callable, Iterator, Sequence
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
from llmkt_ray.training.bridge.dataset import PADDING
from llmkt_ray.training.bridge.models import BuiltModel
from llmkt_ray.training.layers import RecBoleProbe
from llmkt_ray.training.spec import TrialArtifacts, TrialSpec
from llmkt_ray.training.trial import run_trial
from llmkt_ray.transfer.hook import HookManager
from llmkt_ray.transfer.loss import cka
from llmkt_ray.transfer.state import untouched
from llmkt_ray.transfer.taps import Tap

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


def train_plainly(
    spec: TrialSpec,
    data: PreparedData,
    *,
    device: str = "cpu",
    threads: int = 1,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> BuiltModel:
    """Trains a model without any transfer, by its own passes and selection, and returns it at its best validation epoch.

    Args:
        spec: a baseline.
        data: its split.
        device: "cpu" or "cuda".
        threads: threads that torch may use.
        on_epoch: called with each epoch's row.

    Raises:
        TrainingError: the model cannot be built or trained.
    """
    trained: list[BuiltModel] = []
    run_trial(
        spec,
        TrialArtifacts(data),
        device=device,
        threads=threads,
        on_epoch=on_epoch,
        on_tested=lambda model, _: trained.append(model),
    )
    return trained[0]


def knowledge_of(model: BuiltModel, data: PreparedData, targets: Targets, taps: Sequence[Tap]) -> Iterator[Knowledge]:
    """Yields what taps of a model, as it is, know about the targets.

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
    for tap in taps:
        rows = tap_rows(model, data, tap, users)
        regression = make_pipeline(StandardScaler(), RidgeCV(alphas=_PENALTIES))
        predicted = cross_val_predict(regression, rows, wanted, cv=KFold(FOLDS, shuffle=True, random_state=0))
        similarity = 1 - float(cka(torch.from_numpy(rows), torch.from_numpy(wanted), torch.ones(len(users), dtype=torch.float64)))
        yield Knowledge(tap, similarity, float(r2_score(wanted, predicted, multioutput="variance_weighted")), len(users))


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
