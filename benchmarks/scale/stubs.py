"""What scheduling costs by itself: a study of trials that do nothing, at several sizes.

    python -m benchmarks.scale.stubs --trials 500 2000 10000

Prints for each size the seconds a trial, the driver's memory, and what the ledger takes to read and on disk.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep.cluster import cluster
from llmkt_ray.sweep.run import run_study
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from tests.tiny import tiny_study

PER_SEED = 5
"""Trials a seed of the study below: baseline, alpha0, shuffled and two alphas."""


def nothing(spec: TrialSpec, artifacts: TrialArtifacts, **_: object) -> TrialResult:
    """Returns at once."""
    return TrialResult(spec=spec, status="done", valid=dict.fromkeys(spec.metrics, 0.5), test=dict.fromkeys(spec.metrics, 0.5))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, nargs="+", default=[500, 2000, 10000])
    options.add_argument("--workers", type=int, default=2)
    given = options.parse_args()
    table = Table("trials", "seconds", "seconds a trial", "driver MiB", "ledger MiB", "read s", box=None)
    with cluster(num_cpus=given.workers):
        for trials in given.trials:
            with tempfile.TemporaryDirectory(prefix="llmkt-scale-") as folder:
                table.add_row(*measure(Path(folder), trials))
    Console().print(table)


def measure(root: Path, trials: int) -> tuple[str, ...]:
    """Runs a study of `trials` stub trials and returns a line of the table."""
    references = {"metrics": ("NDCG@10",), "references": []}
    study = tiny_study(root, evaluation=references)
    study = study.model_copy(update={"seeds": trials // PER_SEED})
    run_study(study, limit=PER_SEED, console=Console(file=io.StringIO()), run_trial=nothing)  # the artifacts, outside the measurement
    begun = time.monotonic()
    summary = run_study(study, console=Console(file=io.StringIO()), run_trial=nothing)
    seconds = time.monotonic() - begun
    assert summary.failed == 0
    assert summary.done == trials
    begun = time.monotonic()
    rows = Ledger(study_folder(study)).trials()
    read_s = time.monotonic() - begun
    disk = sum(path.stat().st_size for path in (Path(study_folder(study)) / "ledger").rglob("*.parquet"))
    memory = psutil.Process().memory_info().rss
    return str(len(rows)), f"{seconds:.1f}", f"{seconds / trials:.3f}", f"{memory / 2**20:.0f}", f"{disk / 2**20:.1f}", f"{read_s:.2f}"


if __name__ == "__main__":
    main()
