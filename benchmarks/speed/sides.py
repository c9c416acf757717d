"""The two sides of each comparison: ours, and the bare mathematics or RecBole's own way; and the seconds that each took.

Seconds are process CPU seconds where one process works (a loaded machine disturbs them little), wall seconds where several do.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.recbole_side import run_recbole
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.seeds import derive_seed
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.models import BuiltModel, build_model
from llmkt_ray.training.evaluate import RankingTask
from llmkt_ray.training.loop import TrainingLoop, make_adam
from llmkt_ray.training.metrics import parse_metrics
from llmkt_ray.training.spec import TrialArtifacts, TrialSpec
from llmkt_ray.training.trial import run_trial
from llmkt_ray.transfer.manager import TransferManager
from llmkt_ray.transfer.phases import PhasePlan
from llmkt_ray.transfer.weights import WeightsManager

MODELS = ("BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN")
PAIR_S = 2.0
"""CPU seconds that a pair takes at least."""
METRICS = ("NDCG@10", "Recall@10", "Hit@10", "MRR@10")
BATCH_SIZES = {"MultiVAE": 256}


def make_spec(data: PreparedData, model: str, epochs: int = 20) -> TrialSpec:
    """The trial that is timed: RecBole's default settings of the model."""
    return TrialSpec(
        study_seed=1, dataset=data.name, split_key=data.key, model=model, epochs=epochs, batch_size=BATCH_SIZES.get(model, 2048),
        learning_rate=0.001, arm="baseline", metrics=METRICS, select_on="NDCG@10", seed_index=0,
    )  # fmt: skip


def built(data: PreparedData, model: str) -> tuple[TrialSpec, BuiltModel, BatchSource]:
    """Returns a model with its spec and its batches."""
    spec = make_spec(data, model)
    made = build_model(model, data, hyperparameters={}, seed=derive_seed(spec.seed, "initialisation"))
    return spec, made, BatchSource(made, data.train.positives(), batch_size=spec.batch_size, seed=spec.seed)


def cpu_s(work: Callable[[], object]) -> float:
    """Process CPU seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def median_pair(ours: Callable[[], object], bare: Callable[[], object], pairs: int) -> tuple[float, float, float]:
    """Runs both sides in turn; returns the medians of our seconds, the bare seconds and the ratio.

    A pair of short sides alternates between them for at least `PAIR_S`, so that what slows the machine for a while slows both.
    """
    ours(), bare()
    times = max(1, math.ceil(PAIR_S / (cpu_s(ours) + cpu_s(bare))))

    def pair() -> tuple[float, float]:
        turns = [(cpu_s(ours), cpu_s(bare)) for _ in range(times)]
        first, second = zip(*turns, strict=True)
        return sum(first) / times, sum(second) / times

    return medians([pair() for _ in range(pairs)])


def medians(seconds: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Returns the medians of the first side, the second side and their ratio over all pairs."""
    first, second = zip(*seconds, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(a / b for a, b in seconds)


def epoch_ratio(data: PreparedData, model: str, pairs: int) -> tuple[float, float, float]:
    """Our epoch against the same steps on batches made beforehand."""
    spec, made, batches = built(data, model)
    plan = PhasePlan(spec.schedule, 10_000, one_phase=True)
    transfer, weights = TransferManager(made.module, plan, None), WeightsManager(made.module, plan, make_adam(spec))
    loop = TrainingLoop(spec, made, batches, plan, transfer, weights, lambda: None, None, None)  # type: ignore[arg-type, return-value]
    _, other, again = built(data, model)
    ready = [batch.interaction for batch in again.epoch(1)]
    optimizer = make_adam(spec)(list(other.module.parameters()))
    other.module.train()

    def bare() -> None:
        for interaction in ready:
            optimizer.zero_grad(set_to_none=True)
            other.loss(interaction).backward()
            optimizer.step()

    return median_pair(lambda: loop._train(1), bare, pairs)


def evaluation_ratio(data: PreparedData, model: str, pairs: int) -> tuple[float, float, float]:
    """Our evaluation against scoring the same users and taking the top 10, without mask, metrics or per-user values."""
    _, made, _ = built(data, model)
    made.module.eval()
    task = RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=parse_metrics(METRICS))
    blocks = [block[0] for block in task._blocks]

    def bare() -> None:
        for users in blocks:
            torch.topk(made.scores(users), 10, dim=1)

    return median_pair(lambda: task.run(made.scores), bare, pairs)


def trial_ratios(data: PreparedData, model: str, files: Path, *, epochs: int, pairs: int) -> list[tuple[float, float, float]]:
    """Whole trials by RecBole over the same trials by us, start and test included: by its default settings, and by its best."""
    settings = {"train_batch_size": BATCH_SIZES.get(model, 2048)}
    best = settings | {"eval_batch_size": 512 * (data.n_items + 1)}
    rounds = [
        (
            cpu_s(lambda: run_recbole(model, files, seed=1, epochs=epochs, settings=settings)),
            cpu_s(lambda: run_recbole(model, files, seed=1, epochs=epochs, settings=best)),
            cpu_s(lambda: run_trial(make_spec(data, model, epochs), TrialArtifacts(data))),
        )
        for _ in range(pairs)
    ]
    return [medians([(row[side], row[2]) for row in rounds]) for side in (0, 1)]


class FirstStep(Exception):
    """The first epoch is about to be trained."""


def start_s(data: PreparedData, model: str) -> float:
    """CPU seconds from the call of run_trial to its first training step."""
    original = TrainingLoop._train

    def stop(self: TrainingLoop, epoch: int) -> None:
        raise FirstStep

    TrainingLoop._train = stop  # type: ignore[method-assign]
    started = time.process_time()
    try:
        run_trial(make_spec(data, model), TrialArtifacts(data))
    except FirstStep:
        return time.process_time() - started
    finally:
        TrainingLoop._train = original  # type: ignore[method-assign]
    raise AssertionError("the trial never trained")
