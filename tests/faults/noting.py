"""A run that notes every epoch that it trains, and leaves a checkpoint after each: `python -m tests.faults.noting STUDY EXECUTOR`."""

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from llmkt_ray.study_file import load_study
from llmkt_ray.sweep.run import run_study
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from llmkt_ray.training.trial import run_trial

Note = tuple[str, int, int]
"""Trial key, process, epoch."""


def noting(spec: TrialSpec, artifacts: TrialArtifacts, *, checkpoint_dir: Path, **settings: Any) -> TrialResult:
    """The real trial; each epoch becomes a line as soon as it is trained and in the checkpoint."""
    told: Callable[[dict[str, Any]], None] = settings.pop("on_epoch")

    def note(row: dict[str, Any]) -> None:
        with open(checkpoint_dir.parent / "epochs.txt", "a") as file:
            file.write(f"{spec.key} {os.getpid()} {row['epoch']}\n")
        told(row)
        time.sleep(0.02)

    return run_trial(spec, artifacts, checkpoint_dir=checkpoint_dir, checkpoint_interval_s=0.0, on_epoch=note, **settings)


def notes(folder: Path) -> list[Note]:
    """Returns what a study's runs have noted so far, in order."""
    file = folder / "epochs.txt"
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(key, int(process), int(epoch)) for key, process, epoch in lines]


if __name__ == "__main__":
    run_study(
        load_study(Path(sys.argv[1])),
        executor="ray" if sys.argv[2] == "ray" else "loop",
        num_cpus=2,
        console=Console(file=io.StringIO()),
        run_trial=noting,
    )
