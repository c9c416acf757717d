"""Two workers against one, one thread each, and the share of a short trial's time that scheduling takes.

    OMP_NUM_THREADS=1 python -m benchmarks.scale.workers --trials 16 --epochs 20
    OMP_NUM_THREADS=1 python -m benchmarks.scale.workers --sleep 20 --trials 8

The first runs real trials of BPR on ml-100k, on a cluster of one logical CPU and then of two, and prints the ratio of the wall seconds; CPU
share is the trials' CPU seconds over their wall seconds: below 1 they waited for a core, and the machine was not theirs. The second
runs trials that sleep. Overhead is what is left of workers x wall seconds beside the trials themselves.
"""

import argparse
import io
import tempfile
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study import StudyConfig
from llmkt_ray.sweep.cluster import cluster
from llmkt_ray.sweep.execute import RunTrial
from llmkt_ray.sweep.run import run_study
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from llmkt_ray.training.trial import run_trial


def asleep(spec: TrialSpec, artifacts: TrialArtifacts, *, seconds: float, **_: object) -> TrialResult:
    """A trial that takes its time and no CPU."""
    time.sleep(seconds)
    values = dict.fromkeys(spec.metrics, 0.5)
    return TrialResult(spec=spec, status="done", valid=values, test=values, measures={"wall_s": seconds, "cpu_s": 0.0})


def study_of(folder: Path, trials: int, epochs: int) -> StudyConfig:
    """Returns a study of `trials` baselines of BPR on ml-100k."""
    return StudyConfig.model_validate({
        "name": "workers", "datasets": [{"name": "ml-100k", "positive": {"rating_at_least": 4}}],
        "models": [{"name": "BPR", "epochs": epochs}], "transfer": {"alphas": []}, "controls": ["baseline"], "seeds": trials,
        "evaluation": {"references": []}, "tracking": {"tensorboard": False}, "storage": str(folder),
    })  # fmt: skip


def sweep(workers: int, trials: int, epochs: int, work: RunTrial) -> tuple[float, float, float]:
    """Returns the wall seconds of a sweep on a cluster that is there already, its trials' wall seconds and their CPU seconds."""
    with tempfile.TemporaryDirectory(prefix="llmkt-workers-") as folder, cluster(num_cpus=workers):
        study, quiet = study_of(Path(folder), trials, epochs), Console(file=io.StringIO())
        run_study(study, limit=0, console=quiet, run_trial=work)  # the split
        begun = time.perf_counter()
        summary = run_study(study, console=quiet, run_trial=work)
        wall_s = time.perf_counter() - begun
        assert (summary.done, summary.failed) == (trials, 0), summary
        rows = Ledger(summary.folder).trials()
        return wall_s, float(rows["wall_s"].sum()), float(rows["cpu_s"].sum())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, default=16)
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--sleep", type=float, help="seconds that a trial sleeps instead of training, on two workers")
    given = options.parse_args()
    work: RunTrial = run_trial if given.sleep is None else partial(asleep, seconds=given.sleep)
    table, walls = Table("workers", "wall s", "seconds a trial", "CPU share", "overhead", box=None), []
    for workers in (1, 2) if given.sleep is None else (2,):
        wall_s, trials_s, cpu_s = sweep(workers, given.trials, given.epochs, work)
        walls.append(wall_s)
        overhead = 1 - trials_s / (workers * wall_s)
        table.add_row(str(workers), f"{wall_s:.1f}", f"{trials_s / given.trials:.2f}", f"{cpu_s / trials_s:.2f}", f"{overhead:.1%}")
    Console().print(table)
    if len(walls) == 2:
        print(f"2 workers against 1: {walls[0] / walls[1]:.2f}")


if __name__ == "__main__":
    main()
