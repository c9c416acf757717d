"""One trial from its spec to its result: a plain function of its inputs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.errors import TrainingError, unknown_name
from llmkt_ray.seeds import derive_seed
from llmkt_ray.study import TABLE_ARMS
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.models import BuiltModel, build_model
from llmkt_ray.training.checkpoint import INTERVAL_S, CheckpointFile
from llmkt_ray.training.evaluate import Ranking, RankingTask
from llmkt_ray.training.inputs import bake, give_profiles, knowledge_input
from llmkt_ray.training.isolation import isolated, seed_globals
from llmkt_ray.training.labelled import LabelledTask
from llmkt_ray.training.loop import EpochRow, TrainingLoop, make_adam
from llmkt_ray.training.measure import Measures
from llmkt_ray.training.metrics import PROTOCOLS, parse_metrics, protocol_problem
from llmkt_ray.training.sampled import POP20, UNI100, SampledTask
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from llmkt_ray.training.stages import train_stages
from llmkt_ray.training.teacher import make_transfer
from llmkt_ray.transfer.phases import PhasePlan
from llmkt_ray.transfer.weights import WeightsManager

REFERENCE = "reference"


@dataclass(frozen=True)
class Outcome:
    """What training gives before test is opened: see the fields of the same names of `TrialResult`."""

    valid: dict[str, float]
    best_epoch: int = 0
    converged: bool | None = None
    epochs: tuple[EpochRow, ...] = ()
    is_stopped: bool = False


def run_trial(
    spec: TrialSpec,
    artifacts: TrialArtifacts,
    *,
    device: str = "cpu",
    threads: int = 1,
    checkpoint_dir: Path | None = None,
    checkpoint_interval_s: float = INTERVAL_S,
    phase1_dir: Path | None = None,
    stages_dir: Path | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_tested: Callable[[BuiltModel, dict[str, float]], None] | None = None,
) -> TrialResult:
    """Trains and tests one trial; equal inputs give equal results, bitwise on CPU, whatever ran before in the process.

    Everything random is derived from `spec.seed`: initialisation, projection, targets of a control, and for each epoch order,
    negatives and dropout. Test rows are read once, by `open_test`, after the last epoch.

    Args:
        spec: the trial.
        artifacts: the split, and the targets where the arm transfers.
        device: "cpu" or "cuda".
        threads: threads that torch may use.
        checkpoint_dir: where `<trial key>.pt` is kept; a checkpoint found there is resumed exactly. It stays when the trial has ended,
            for whoever keeps the result to delete then: until it is kept, it can be lost.
        checkpoint_interval_s: seconds between checkpoints at the least; 0 saves at every epoch boundary.
        phase1_dir: where `<phase-1 key>.pt` is kept for trials that differ in phase 2 alone; one found there is gone on from, bitwise
            as if phase 1 had been computed here; None: phase 1 is computed and not kept.
        stages_dir: where what comes before the first epoch (RaCT) is kept for trials that share it; None: it is computed and not kept.
        on_epoch: called with each epoch's row as soon as it is known.
        on_tested: called once with the tested model and its test metrics.

    Raises:
        TrainingError: the spec contradicts itself or the artifacts, the loss is not finite, or nothing was transferred.
        LayerError: the tap cannot be used.
        EmbeddingError: the targets belong to other users.
        ResourceError: a GPU is asked for where there is none.
        StorageError: a checkpoint cannot be written.
    """
    measures = Measures(device)
    data = artifacts.data
    _check(spec, data)
    with isolated(device=device, threads=threads):
        model = build_model(
            spec.model, data, hyperparameters=spec.hyperparameters, seed=derive_seed(spec.seed, "initialisation"),
            device=device, class_path=spec.class_path, batch_size=spec.batch_size, knowledge=knowledge_input(spec, artifacts, device),
        )  # fmt: skip
        if spec.arm in TABLE_ARMS:
            give_profiles(spec, model, data, artifacts.targets)
        validate = evaluator(spec, model, data, data.valid, known=[data.train_full], learnt=[data.train])
        facts: dict[str, Any] = {
            "n_parameters": sum(parameter.numel() for parameter in model.module.parameters()),
            "n_train_rows": len(data.train) if spec.protocol == "labelled" else int(data.train.positive.sum()),
        }
        facts["sparsity"] = 1 - facts["n_train_rows"] / (data.n_users * data.n_items)
        if model.entry.is_reference or spec.arm == REFERENCE:
            outcome = Outcome(valid=_run_reference(spec, model, data, validate))
        else:
            checkpoint = CheckpointFile(checkpoint_dir, spec.key, checkpoint_interval_s) if checkpoint_dir is not None else None
            phase1 = None
            if phase1_dir is not None and spec.phase1_key is not None:
                phase1 = CheckpointFile(phase1_dir, spec.phase1_key, 0.0)
            stages = None
            if stages_dir is not None and spec.stages_key is not None:
                stages = CheckpointFile(stages_dir, spec.stages_key, 0.0)
            outcome = _run_loop(spec, artifacts, model, validate, checkpoint, phase1, stages, on_epoch, facts)
        facts["train_wall_s"] = round(measures.wall_s, 3)
        if outcome.is_stopped:
            return TrialResult(
                spec=spec,
                status="pruned",
                valid=outcome.valid,
                best_epoch=outcome.best_epoch,
                epochs=outcome.epochs,
                facts=facts,
                measures=measures.finish(threads),
            )
        test = open_test(spec, model, data)
        bake(model.module)  # as a server would have it: joined profiles are not joined again for every request
        if model.entry.batches == "pointwise":
            facts["serving_1000_pairs_s"] = serving_s(model)
        if on_tested is not None:
            on_tested(model, dict(test.means))
    return TrialResult(
        spec=spec,
        status="done",
        valid=outcome.valid,
        test=test.means,
        best_epoch=outcome.best_epoch,
        converged=outcome.converged,
        epochs=outcome.epochs,
        users={"user": test.users} | dict(test.per_user),
        recommended=test.recommended,
        facts=facts,
        measures=measures.finish(threads),
    )


def evaluator(
    spec: TrialSpec, model: BuiltModel, data: PreparedData, held_out: Rows, *, known: Sequence[Rows], learnt: Sequence[Rows]
) -> Callable[[], Ranking]:
    """Returns the function that evaluates a model, as it then is, on a held-out part.

    Args:
        spec: the trial.
        model: the built model.
        data: the split.
        held_out: the part.
        known: rows whose items are not offered in a ranking.
        learnt: rows that a sequential model's histories are made of.
    """
    metrics = parse_metrics(spec.metrics)
    if spec.protocol == "labelled":
        labelled = LabelledTask(held_out, metrics=metrics)
        return lambda: labelled.run(model.probabilities)
    score = model.scorer(learnt)
    if spec.protocol == "paper_2024":
        draw, part = (UNI100, "test") if held_out is data.test else (POP20, "valid")
        seed = derive_seed(spec.seed, "sampled", part)
        sampled = SampledTask(held_out, known, n_items=data.n_items, metrics=metrics, draw=draw, seed=seed)
        if model.entry.batches == "pointwise":
            return lambda: sampled.run_pairs(model.probabilities)
        return lambda: sampled.run(score)
    ranking = RankingTask(held_out, known, n_items=data.n_items, metrics=metrics)
    return lambda: ranking.run(score)


def open_test(spec: TrialSpec, model: BuiltModel, data: PreparedData) -> Ranking:
    """Evaluates the model as it is on test: the one place of training that reads test rows.

    In a ranking the items of the full train split and of validation are masked.
    """
    model.module.eval()
    return evaluator(spec, model, data, data.test, known=[data.train_full, data.valid], learnt=[data.train, data.valid])()


def serving_s(model: BuiltModel, pairs: int = 1000, repeats: int = 5) -> float:
    """Returns the median of seconds that a trained model takes to score that many (user, item) pairs, as a server would ask it."""
    rng = np.random.default_rng(0)
    users = torch.from_numpy(rng.integers(model.n_users, size=pairs))
    items = torch.from_numpy(rng.integers(model.n_items, size=pairs))
    taken = []
    for _ in range(repeats + 1):  # the first call warms up: vectors that a server keeps are made in it
        started = time.perf_counter()
        model.probabilities(users, items)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[1:]))


def _check(spec: TrialSpec, data: PreparedData) -> None:
    """Refuses a spec that does not fit its data or itself."""
    if spec.split_key != data.key:
        raise TrainingError(f"the trial is specified on split {spec.split_key!r}, but was given split {data.key!r}")
    if spec.select_on not in spec.metrics:
        raise TrainingError(f"select_on {spec.select_on!r} must be one of the metrics {list(spec.metrics)}")
    if spec.protocol not in PROTOCOLS:
        raise TrainingError(unknown_name("protocol", spec.protocol, PROTOCOLS))
    parse_metrics(spec.metrics)
    problem = protocol_problem(spec.protocol, spec.metrics)
    if problem:
        raise TrainingError(problem)


def _run_loop(
    spec: TrialSpec,
    artifacts: TrialArtifacts,
    model: BuiltModel,
    validate: Callable[[], Ranking],
    checkpoint: CheckpointFile | None,
    phase1: CheckpointFile | None,
    stages: CheckpointFile | None,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    facts: dict[str, Any],
) -> Outcome:
    """Assembles and runs the training loop; adds what was resolved to `facts`."""
    plan = PhasePlan(spec.schedule, spec.epochs, one_phase=spec.arm == "baseline")
    labelled = spec.protocol == "labelled"
    train = artifacts.data.train if labelled else artifacts.data.train.positives()
    batches = BatchSource(model, train, batch_size=spec.batch_size, seed=spec.seed, labelled=labelled)
    if model.stages and (checkpoint is None or checkpoint.load(model.device) is None):  # before the balance is measured
        train_stages(spec, model, batches, stages)
    transfer = make_transfer(spec, plan, model, batches, artifacts.data, artifacts)
    weights = WeightsManager(model.module, plan, make_adam(spec), extra=transfer.parameters, shared=phase1 is not None)
    loop = TrainingLoop(spec, model, batches, plan, transfer, weights, validate, checkpoint, on_epoch, phase1)
    loop.run()
    facts |= {
        "path": batches.path,
        "batches": batches.kind,
        "batches_per_epoch": batches.n_batches * len(model.passes(1)),
        "negatives_per_row": 0 if labelled else model.negatives_per_row,
        "phase1_epochs": 0 if plan.one_phase else plan.phase1_epochs,
        "handed_over": weights.handed_over,
        "beta": transfer.beta,
        "transfer_steps": transfer.transfer_steps,
    }
    if model.trainer:
        facts["trainer"] = model.trainer
    if model.stages:
        facts["epochs_before"] = {stage.name: stage.epochs for stage in model.stages}
    if loop.saved_s is not None:
        facts["phase1_saved_s"] = round(loop.saved_s, 3)
    if loop.stopped_epoch is not None:
        facts["stopped_epoch"] = loop.stopped_epoch
        return Outcome(loop.best_valid, loop.best_epoch, epochs=tuple(loop.rows), is_stopped=True)
    return Outcome(loop.best_valid, loop.best_epoch, loop.best_epoch < loop.last_evaluated, tuple(loop.rows))


def _run_reference(spec: TrialSpec, model: BuiltModel, data: PreparedData, validate: Callable[[], Ranking]) -> dict[str, float]:
    """Computes a reference model and returns its validation metrics."""
    if not model.entry.is_reference:
        raise TrainingError(f"{spec.model} is trained in steps: it cannot be a reference line; its arms are baseline, alpha0, treated, ...")
    if spec.arm != REFERENCE:
        raise TrainingError(f"{spec.model} has no layer to transfer into: its only arm is {REFERENCE!r}, but got {spec.arm!r}")
    seed_globals(derive_seed(spec.seed, "dropout", 0))
    model.count_items(np.bincount(data.train.positives().item, minlength=data.n_items))
    model.module.eval()
    return dict(validate().means)
