"""How long the report of a large study takes, and how large it is.

    python -m benchmarks.statistics.large_report FOLDER [--trials 10000] [--users 943]

Writes a synthetic ledger of about that many trials (compacted, as a real study of that size is) into FOLDER, an empty or absent
folder, then builds its report twice and prints the time, the size and the peak memory.
"""

import argparse
import resource
import time
from pathlib import Path

from llmkt_ray.report import build
from tests.unit.report import synthetic

MODELS = ("BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN", "DMF", "ENMF", "NGCF")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=943)
    given = parser.parse_args()
    per_layer = len(MODELS) * 2 * 5 * 11
    layers = tuple(f"encoder.{k}" for k in range(max(1, round(given.trials / per_layer))))
    world = synthetic.World(
        name="large", datasets=("ml-100k", "ml-1m"), models={m: 0.1 + 0.01 * k for k, m in enumerate(MODELS)}, layers=layers,
        alphas=tuple(round(0.1 * k, 1) for k in range(1, 10)), seeds=5, n_users=given.users, epochs=20,
    )  # fmt: skip
    started = time.perf_counter()
    synthetic.write(given.folder, world)
    planned = len(synthetic.specs(world, synthetic.study_of(world)))
    print(f"{planned:,} trials written in {time.perf_counter() - started:.0f} s", flush=True)
    for _ in range(2):
        started, cpu = time.perf_counter(), time.process_time()
        page = build(given.folder)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"report in {wall:.1f} s ({cpu:.1f} s CPU), {page.stat().st_size / 1e6:.1f} MB, peak memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
