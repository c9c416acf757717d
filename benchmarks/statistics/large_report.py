"""How long the report of a large study takes, and how large it is.

    python -m benchmarks.statistics.large_report FOLDER [--trials 10000] [--users 943]

Writes a synthetic ledger of about that many trials (compacted, as a real study of that size is) into FOLDER, an empty or absent
folder, and the split and profiles beside it, then builds its report twice and prints the time, the size and the peak memory; where
there is a Chromium, also how long the page takes to open in it.
"""

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path

from llmkt_ray.report import build
from tests.report.devtools import Page
from tests.unit.report import synthetic

MODELS = ("BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN", "DMF", "ENMF", "NGCF")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=943)
    parser.add_argument("--items", type=int, default=1682)
    given = parser.parse_args()
    per_layer = len(MODELS) * 2 * 5 * 11
    layers = tuple(f"encoder.{k}" for k in range(max(1, round(given.trials / per_layer))))
    world = synthetic.World(
        name="large", datasets=("ml-100k", "ml-1m"), models={m: 0.1 + 0.01 * k for k, m in enumerate(MODELS)}, layers=layers,
        alphas=tuple(round(0.1 * k, 1) for k in range(1, 10)), seeds=5, n_users=given.users, epochs=20,
        n_items=given.items, k=10,
    )  # fmt: skip
    started = time.perf_counter()
    kind = "films of many kinds, old and new, loud and quiet; of user {0} it says little that it does not say of others. " * 6
    synthetic.write_artifacts(given.folder / "artifacts", world, "A film with a title of usual length, number {}".format, kind.format)
    synthetic.write(given.folder / "study", world)
    planned = len(synthetic.specs(world, synthetic.study_of(world)))
    print(f"{planned:,} trials written in {time.perf_counter() - started:.0f} s", flush=True)
    for _ in range(2):
        started, cpu = time.perf_counter(), time.process_time()
        page = build(given.folder / "study")
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"report in {wall:.1f} s ({cpu:.1f} s CPU), {page.stat().st_size / 1e6:.1f} MB, peak memory {peak:.1f} GiB")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is not None:
        with tempfile.TemporaryDirectory() as scratch, Page(chromium, Path(scratch)) as tab:
            tab.open(page)
            timing = tab.js(
                "(t => [t.domInteractive, t.loadEventEnd, performance.getEntriesByName('first-contentful-paint')[0].startTime])"
                "(performance.getEntriesByType('navigation')[0])"
            )
            print(f"opens: first paint after {timing[2]:.0f} ms, usable after {timing[0]:.0f} ms, loaded after {timing[1]:.0f} ms")


if __name__ == "__main__":
    main()
