"""What scheduling costs by itself: a study of trials that do nothing, at several sizes.

    python -m benchmarks.scale.stubs --trials 500 2000
    python -m benchmarks.scale.stubs --trials 10000 --folder /tmp/stubs --minutes 8      # again and again, until all rows are there

Prints for each size the wall seconds and the driver's CPU seconds a trial (other work on the machine changes the first, hardly the second),
the driver's memory, and what the ledger takes to read and on disk. With a folder a study that is not finished in the minutes given
goes on in the next call, and each call is a line.
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
from llmkt_ray.study import BudgetConfig, StudyConfig
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
    options.add_argument("--folder", type=Path, help="where studies are kept that take several calls")
    options.add_argument("--minutes", type=float, default=8.0, help="of one study in one call, where there is a folder")
    given = options.parse_args()
    table = Table("trials", "now", "seconds", "seconds a trial", "driver CPU s a trial", "driver MiB", "ledger MiB", "read s", box=None)
    with cluster(num_cpus=given.workers):
        for trials in given.trials:
            with tempfile.TemporaryDirectory(prefix="llmkt-scale-") as folder:
                kept = given.folder / str(trials) if given.folder else Path(folder)
                table.add_row(*measure(kept, trials, given.minutes if given.folder else None))
    Console().print(table)


def measure(root: Path, trials: int, minutes: float | None) -> tuple[str, ...]:
    """Runs what is missing of a study of `trials` stub trials, for some minutes at the most, and returns a line of the table."""
    study = stub_study(root, trials)
    run_study(study, limit=PER_SEED, console=Console(file=io.StringIO()), run_trial=nothing)  # the artifacts, outside the measurement
    if minutes is not None:
        study = study.model_copy(update={"budget": BudgetConfig(hours=minutes / 60)})
    begun, cpu = time.monotonic(), time.process_time()
    summary = run_study(study, console=Console(file=io.StringIO()), run_trial=nothing)
    seconds, cpu_s = time.monotonic() - begun, time.process_time() - cpu
    assert summary.failed == 0
    assert summary.done + summary.left_out == trials, "a row is lost"
    begun = time.monotonic()
    rows = Ledger(study_folder(study)).trials()
    read_s = time.monotonic() - begun
    disk = sum(path.stat().st_size for path in (Path(study_folder(study)) / "ledger").rglob("*.parquet"))
    memory = psutil.Process().memory_info().rss
    each, of_driver = (f"{value / summary.ran:.4f}" if summary.ran else "-" for value in (seconds, cpu_s))
    return (
        str(len(rows)), str(summary.ran), f"{seconds:.1f}", each, of_driver,
        f"{memory / 2**20:.0f}", f"{disk / 2**20:.1f}", f"{read_s:.2f}",
    )  # fmt: skip


def stub_study(root: Path, trials: int) -> StudyConfig:
    """Returns a study of so many trials, its dataset and results below `root`."""
    study = tiny_study(root, evaluation={"metrics": ("NDCG@10",), "references": []}, tracking={"tensorboard": False})
    return study.model_copy(update={"seeds": trials // PER_SEED})


if __name__ == "__main__":
    main()
