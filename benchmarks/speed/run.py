"""How much of a trial's time is mathematics?

    OMP_NUM_THREADS=1 python -m benchmarks.speed.run [--what start epoch evaluation trial] [--models BPR ...] [--data ml-100k 1m]

epoch       an epoch of the training loop over bare forward + backward + step on batches made beforehand, at most 1.15
evaluation  one evaluation over bare scoring + top-k, at most 1.15
trial       20 epochs with an evaluation each, RecBole's default path (and its best settings) over ours; BPR at 1M at least 4
start       CPU seconds from the call of run_trial to the first training step, at most 1

Ratios are of process CPU seconds, the sides taken in turn in one run, the median of `--pairs` pairs; both sides use the same
model class and the same optimizer.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.recbole_side import run_recbole, write_atomic
from benchmarks.speed.data import ml_100k, synthetic
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
    """Runs both sides in turn; returns the medians of our seconds, the bare seconds and the ratio."""
    ours(), bare()
    seconds = [(cpu_s(ours), cpu_s(bare)) for _ in range(pairs)]
    return tuple(statistics.median(column) for column in (*zip(*seconds, strict=True), [a / b for a, b in seconds]))  # type: ignore[return-value]


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


def trial_ratio(data: PreparedData, model: str, files: Path, best: bool) -> tuple[float, float, float]:
    """A whole trial by RecBole over the same trial by us (one pair: these are long)."""
    settings = {"train_batch_size": BATCH_SIZES.get(model, 2048)} | ({"eval_batch_size": 512 * (data.n_items + 1)} if best else {})
    theirs = cpu_s(lambda: run_recbole(model, files, seed=1, epochs=20, settings=settings))
    ours = cpu_s(lambda: run_trial(make_spec(data, model), TrialArtifacts(data)))
    return theirs, ours, theirs / ours


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


def report(name: str, figures: Sequence[float], target: float, smaller: bool, met: list[bool]) -> None:
    """Prints one line: name, figures, target, met or not."""
    value = figures[-1]
    good = value <= target if smaller else value >= target
    met.append(good)
    shown = "  ".join(f"{figure:8.3f}" for figure in figures)
    print(f"{name:34} {shown}   target {'<=' if smaller else '>='} {target:<5} {'met' if good else 'NOT MET'}", flush=True)


def main() -> int:
    """Runs what was asked for; the exit code is 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=["start", "epoch", "evaluation"], choices=["start", "epoch", "evaluation", "trial"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--data", nargs="+", default=["ml-100k", "1m"], choices=["ml-100k", "1m"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--best", action="store_true", help="trial: RecBole with large evaluation batches instead of its default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    met: list[bool] = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in arguments.data:
            data = ml_100k(Path(scratch, "store")) if size == "ml-100k" else synthetic()
            if "trial" in arguments.what:
                write_atomic(data, Path(scratch, size))
            for model in arguments.models:
                if "start" in arguments.what:
                    start_s(data, model)  # imports
                    report(f"start {size} {model}", [start_s(data, model)], 1.0, True, met)
                if "epoch" in arguments.what:
                    report(f"epoch {size} {model}", epoch_ratio(data, model, arguments.pairs), 1.15, True, met)
                if "evaluation" in arguments.what:
                    report(f"evaluation {size} {model}", evaluation_ratio(data, model, arguments.pairs), 1.15, True, met)
                if "trial" in arguments.what:
                    figures = trial_ratio(data, model, Path(scratch, size), arguments.best)
                    report(f"trial {size} {model}", figures, 4.0 if (size, model) == ("1m", "BPR") else 1.0, False, met)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
