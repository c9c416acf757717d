"""What one trial is, and what comes out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.knowledge import Knowledge
from llmkt_ray.embeddings.targets import Targets
from llmkt_ray.section import Section
from llmkt_ray.seeds import content_key, training_seed
from llmkt_ray.study import INPUT_ARMS, PLAIN_ARMS, AdaptorConfig, ScheduleConfig

TRIAL_VERSION = 5
"""Part of every trial's key; rises when a change alters a trial's numbers: a folder with rows of an earlier version is not gone on with."""

_OF_THE_TRANSFER = ("alpha", "layer", "targets_key", "twin_key", "loss", "projection", "balance", "weights")
"""Fields that matter in transferring epochs only."""


class TrialSpec(Section):
    """One trial: everything that determines its numbers, and labels that say where it stands in the study."""

    study_seed: int
    dataset: str
    split_key: str
    model: str
    class_path: str | None = None
    class_digest: str | None = None
    """Of the source of the module that `class_path` names; None for RecBole's own models."""
    hyperparameters: dict[str, Any] = {}
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    evaluate_every: int = 1
    arm: str
    """"baseline", "alpha0", "treated", a control of METHOD.md section 4, or "reference" (Pop, ItemKNN, EASE)."""
    alpha: float = 0.0
    layer: str | None = None
    """Resolved tap name, for example "encoder.mlp_layers.1" or "decoder:input"; None: no transfer."""
    targets_key: str | None = None
    twin_key: str | None = None
    """Of the treated arm's targets, where a control has targets of its own: it shares the balance that these give."""
    knowledge_key: str | None = None
    """Of the vectors of users and items that the arms of KAR read."""
    adaptor: AdaptorConfig | None = None
    """KAR's adaptor, for `kar` and `kar_treated`."""
    loss: str = "mse"
    projection: str = "none"
    balance: str = "none"
    weights: Literal["user", "row"] = "user"
    schedule: ScheduleConfig = ScheduleConfig()
    rungs: tuple[tuple[int, float], ...] = ()
    """(epoch of phase 2, value): after that epoch the trial ends, unless its best of phase 2 on validation is at least as good."""
    metrics: tuple[str, ...]
    select_on: str
    protocol: str = "full"
    seed_index: int
    factors: dict[str, str | int | float | bool | None] = {}
    """Labels of the cell (llm, encoder, reduction, dims, train_share, split...); not part of the key."""

    @property
    def key(self) -> str:
        """The trial's content key: of everything but the labels, of our version of a trial, and of the libraries that compute it."""
        return content_key({**self._numbers("factors"), "version": TRIAL_VERSION, "libraries": _libraries()})

    @property
    def phase1_key(self) -> str | None:
        """The content key of all that phase 1 depends on; None where there is no switch (`joint`, a reference).

        Trials of equal phase-1 keys differ in phase 2 alone: in hand-over, optimizer, freezing or length. The plain phase 1 of
        `baseline` and `alpha0` is one, and that of `reversed`, which transfers later, too.
        """
        phase1 = self.schedule.phase1_epochs(self.epochs)
        if self.arm == "reference" or self.schedule.kind == "joint" or not 0 < phase1 < self.epochs:
            return None
        values = self._numbers("factors", "epochs", "schedule", "rungs")
        frozen = [] if self.arm == "baseline" else sorted(self.schedule.freeze.get("phase1", ()))
        shape: dict[str, Any] = {"epochs": phase1, "freeze": frozen}
        if self.arm in PLAIN_ARMS or (self.schedule.kind == "reversed" and self.arm not in INPUT_ARMS):
            values |= dict.fromkeys(_OF_THE_TRANSFER) | {"arm": "plain"}
        else:
            shape |= {"kind": self.schedule.kind, "alpha": self.schedule.alpha}
        return content_key({**values, "phase1": shape, "version": TRIAL_VERSION, "libraries": _libraries()})

    @property
    def stages_key(self) -> str | None:
        """The content key of all that training before the first epoch depends on, the same for all arms; None where an arm changes the
        model's tables before it.
        """
        if self.arm in INPUT_ARMS:
            return None
        names = {"split_key", "model", "class_path", "hyperparameters", "batch_size", "learning_rate", "weight_decay"}
        values = self.model_dump(mode="json", include=names if self.class_digest is None else names | {"class_digest"})
        return content_key({**values, "seed": self.seed, "stages": True, "version": TRIAL_VERSION, "libraries": _libraries()})

    def _numbers(self, *without: str) -> dict[str, Any]:
        """Returns the fields but these; those of KAR, the rungs of a search and a class of the user's own only where the trial has them."""
        optional = (
            ("class_digest", self.class_digest), ("knowledge_key", self.knowledge_key), ("adaptor", self.adaptor),
            ("rungs", self.rungs or None),
        )  # fmt: skip
        unread = [name for name, value in optional if value is None]
        return self.model_dump(mode="json", exclude={*without, *unread})

    @property
    def seed(self) -> int:
        """The root of the trial's randomness; equal for all arms of one (dataset, model, seed index)."""
        return training_seed(self.study_seed, self.dataset, self.model, self.seed_index)


@cache
def _libraries() -> dict[str, str]:
    """Returns the versions that a trial's numbers depend on; torch's without the build ("+cpu"), which the row's device tells."""
    return {name: version(name).partition("+")[0] for name in ("torch", "recbole")}


@dataclass(frozen=True)
class TrialArtifacts:
    """What a trial reads, apart from its spec; arrays may be memory-mapped or in Ray's object store."""

    data: PreparedData
    targets: Targets | None = None
    twin: Targets | None = None
    """The treated arm's targets, for a control with targets of its own."""
    knowledge: Knowledge | None = None
    """Vectors of users and items, for the arms of KAR."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial gives.

    Attributes:
        spec: the trial.
        status: "done", "failed", or "pruned": ended at a rung, without a test.
        valid: metric name to value on validation at the selected epoch, in [0, 1], higher is better.
        test: the same on test, opened once at the end; empty if failed.
        best_epoch: the selected epoch (1-based, of phase 2 where there is one), 0 for a reference.
        converged: False where the best epoch is the last evaluated one: not converged.
        epochs: one mapping an epoch: epoch, phase, loss_model, loss_transfer, gradient_ratio, `valid_<metric>`
            (NaN where not evaluated), duration_s.
        users: arrays over the evaluated test users: "user" (int32 index) and one float64 array a metric.
        recommended: int32 `(n_evaluated, k)` item indices, best first, for the largest k of the metrics.
        facts: what was resolved or met on the way (beta, parameters, sampler, path, transfer_steps, warnings...).
        measures: what may differ between equal runs: wall_s, cpu_s, peak_rss_bytes, host, device, versions.
        error: kind, message and traceback of a failure; None if done.
    """

    spec: TrialSpec
    status: Literal["done", "failed", "pruned"]
    valid: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    converged: bool | None = None
    epochs: tuple[Mapping[str, float | int], ...] = ()
    users: Mapping[str, np.ndarray] = field(default_factory=dict)
    recommended: np.ndarray | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
