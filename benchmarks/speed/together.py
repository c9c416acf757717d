"""Trials side by side: a sweep against RecBole one trial after the other, and n trials on n cores against one trial on n threads."""

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.recbole_side import run_recbole, write_atomic
from benchmarks.speed.data import ml_100k
from benchmarks.speed.point import measure
from benchmarks.speed.sides import medians
from llmkt_ray.study import StudyConfig
from llmkt_ray.sweep.run import run_study


def wall_s(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def sweep_ratio(folder: Path, *, trials: int = 40, epochs: int = 20, cores: int = 2, pairs: int = 5) -> tuple[float, float, float]:
    """Wall seconds of BPR on ml-100k with `trials` seeds by RecBole in one process on all cores, by a sweep on Ray, and their ratio.

    Ours includes starting Ray, making the split, and writing every row; RecBole's the preparation that each of its trials makes.
    """
    write_atomic(ml_100k(folder / "store"), folder / "files")

    def ours(turn: int) -> None:
        study = StudyConfig.model_validate({
            "name": "forty", "datasets": [{"name": "ml-100k", "positive": {"rating_at_least": 4}}],
            "models": [{"name": "BPR", "epochs": epochs}], "transfer": {"alphas": []}, "controls": ["baseline"], "seeds": trials,
            "evaluation": {"references": []}, "storage": str(folder / f"results-{turn}"),
        })  # fmt: skip
        summary = run_study(study, num_cpus=cores, console=Console(file=io.StringIO()))
        if (summary.done, summary.failed) != (trials, 0):
            raise RuntimeError(f"the sweep did not run whole: {summary}")

    def theirs() -> None:
        torch.set_num_threads(cores)
        for seed in range(trials):
            run_recbole("BPR", folder / "files", seed=seed, epochs=epochs, settings={"train_batch_size": 2048})
        torch.set_num_threads(1)

    return medians([(wall_s(theirs), wall_s(partial(ours, turn))) for turn in range(pairs)])


def packing_ratio(model: str, *, cores: int = 2, interactions: int = 300_000, pairs: int = 5) -> tuple[float, float, float]:
    """Seconds of `cores` trials one after the other on `cores` threads, the same side by side on one thread each, their ratio."""

    def trial_s(threads: int) -> float:
        return measure(model, 6040, 3706, interactions, threads=threads)["trial_s"]

    def beside() -> float:
        with ThreadPoolExecutor(cores) as pool:
            return max(pool.map(trial_s, [1] * cores))

    return medians([(sum(trial_s(cores) for _ in range(cores)), beside()) for _ in range(pairs)])
