"""One trial in a fresh process, its cost as one line of JSON: memory and growth are measured process by process.

OMP_NUM_THREADS=1 python -m benchmarks.speed.point --model BPR --users 6040 --items 3706 --interactions 1000000
"""

import argparse
import json
import subprocess
import sys
import time

import torch

from benchmarks.speed.data import synthetic
from benchmarks.speed.sides import make_spec, start_s
from llmkt_ray.training.spec import TrialArtifacts
from llmkt_ray.training.trial import run_trial


def measure(model: str, users: int, items: int, interactions: int, epochs: int = 3, threads: int = 1) -> dict[str, float]:
    """Runs `measure_here` in a process of its own.

    Raises:
        RuntimeError: the process failed.
    """
    sizes = {"model": model, "users": users, "items": items, "interactions": interactions, "epochs": epochs, "threads": threads}
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed.point",
        *(part for name, value in sizes.items() for part in (f"--{name}", str(value))),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_here(model: str, users: int, items: int, interactions: int, epochs: int, threads: int) -> dict[str, float]:
    """Returns seconds of the start (CPU), of an epoch and of the trial (wall), and the trial's peak resident bytes."""
    data = synthetic(interactions, users, items)
    torch.set_num_threads(threads)
    start_s(data, model)  # imports
    start = start_s(data, model)
    begun = time.perf_counter()
    result = run_trial(make_spec(data, model, epochs), TrialArtifacts(data), threads=threads)
    trial = time.perf_counter() - begun
    epoch = sorted(row["duration_s"] for row in result.epochs)[len(result.epochs) // 2]
    return {"start_s": start, "epoch_s": epoch, "trial_s": trial, "peak_rss_bytes": result.measures["peak_rss_bytes"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="BPR")
    for number, default in (("users", 6040), ("items", 3706), ("interactions", 1_000_000), ("epochs", 3), ("threads", 1)):
        parser.add_argument(f"--{number}", type=int, default=default)
    print(json.dumps(measure_here(**vars(parser.parse_args()))))
