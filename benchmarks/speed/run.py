"""How much of a sweep's time is mathematics?

    make benchmark                                              the short set, 1.5 hours and more
    OMP_NUM_THREADS=1 python -m benchmarks.speed.run --what epoch evaluation --models BPR --data 1m --pairs 9

start       CPU seconds from the call of run_trial to the first training step, at 1M interactions at most 1
epoch       an epoch of the training loop over bare forward + backward + step on batches made beforehand, at most 1.15
evaluation  one evaluation over bare scoring + top-k, at most 1.15
trial       20 epochs with an evaluation each: RecBole's default path over ours, BPR at 1M at least 4; and RecBole with its best
            settings (large evaluation batches) over ours
sweep       40 trials one after the other by RecBole over the same 40 swept on 2 cores, at least 3 in wall time
packing     2 trials one after the other on 2 threads over the same side by side on 1 thread each, at least 1
memory      peak resident GB of a trial at 1M interactions in a fresh process, at most 1.5
growth      an epoch with its evaluation at three numbers of users, items and interactions: reported

Ratios come from one run, sides in turn, the median of `--pairs` pairs; both sides have the same model class and optimizer. Without
--models the long ones (trial at 1M, packing) take BPR alone. What was measured is kept in `--to`: figures.json, table.md,
figures.svg. At the end every figure there is printed, one line each.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.recbole_side import write_atomic
from benchmarks.speed.data import ml_100k, synthetic
from benchmarks.speed.figures import Figure, save
from benchmarks.speed.point import measure
from benchmarks.speed.sides import MODELS, epoch_ratio, evaluation_ratio, start_s, trial_ratios
from benchmarks.speed.together import packing_ratio, sweep_ratio

SINGLE = ("start", "epoch", "evaluation", "trial")
WHOLE = ("sweep", "packing", "memory", "growth")
GROWTH = {"users": (1500, 6000, 24000), "items": (1000, 4000, 16000), "interactions": (100_000, 300_000, 1_000_000)}
BASE = {"users": 6000, "items": 4000, "interactions": 300_000}


def models_of(what: str, size: str | None, arguments: argparse.Namespace) -> Sequence[str]:
    """Returns the models that one thing is measured for."""
    long = (what, size) in (("trial", "1m"), ("packing", None))
    return arguments.models or (("BPR",) if long else MODELS)


def of_a_model(what: str, size: str, model: str, arguments: argparse.Namespace, scratch: Path) -> Iterator[Figure]:
    """Measures one thing of one model on one dataset."""
    data = ml_100k(scratch / "store") if size == "ml-100k" else synthetic()
    name, pairs = f"{what}, {size}, {model}", arguments.pairs
    if what == "start":
        start_s(data, model)  # imports
        yield Figure(name, statistics.median(start_s(data, model) for _ in range(pairs)), 1.0, True, "s", pairs)
    elif what == "trial":
        files = scratch / size
        if not files.exists():
            write_atomic(data, files)
        target = 4.0 if (size, model) == ("1m", "BPR") else None
        default, best = trial_ratios(data, model, files, epochs=arguments.epochs, pairs=pairs)
        yield Figure(name, default[-1], target, False, "x", pairs, default[:-1])
        yield Figure(f"{name}, best settings", best[-1], None, False, "x", pairs, best[:-1])
    else:
        *sides, ratio = (epoch_ratio if what == "epoch" else evaluation_ratio)(data, model, pairs)
        yield Figure(name, ratio, 1.15, True, "x", pairs, tuple(sides))


def of_the_whole(what: str, arguments: argparse.Namespace, scratch: Path) -> Iterator[Figure]:
    """Measures what is not one model's on one dataset."""
    if what == "sweep":
        *sides, ratio = sweep_ratio(scratch, epochs=arguments.epochs, pairs=arguments.pairs)
        yield Figure("sweep, 40 trials, ml-100k, BPR", ratio, 3.0, False, "x", arguments.pairs, tuple(sides))
    for model in models_of(what, None, arguments) if what == "packing" else ():
        *sides, ratio = packing_ratio(model, pairs=arguments.pairs)
        yield Figure(f"packing, 2 trials, {model}", ratio, 1.0, False, "x", arguments.pairs, tuple(sides))
    for model in models_of(what, None, arguments) if what == "memory" else ():
        peak = measure(model, 6040, 3706, 1_000_000, epochs=2)["peak_rss_bytes"]
        yield Figure(f"memory, 1m, {model}", peak / 1e9, 1.5, True, "GB", 1)
    for axis, sizes in GROWTH.items() if what == "growth" else ():
        for size in sizes:
            cost = measure("BPR", **{**BASE, axis: size})
            yield Figure(f"growth, {size} {axis}: epoch + eval", cost["epoch_s"], None, True, "s", 1)
            yield Figure(f"growth, {size} {axis}: peak", cost["peak_rss_bytes"] / 1e9, None, True, "GB", 1)


def main() -> int:
    """Measures what was asked for; the exit code is 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=[*SINGLE, *WHOLE], choices=[*SINGLE, *WHOLE])
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--data", nargs="+", default=["ml-100k", "1m"], choices=["ml-100k", "1m"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="of trial and sweep")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/speed/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as scratch:
        asked = [(what, size) for what in SINGLE if what in arguments.what for size in arguments.data]
        wanted = [(what, size, model) for what, size in asked for model in models_of(what, size, arguments)]
        for what, size, model in wanted:
            for figure in of_a_model(what, size, model, arguments, Path(scratch)):
                figures.append(figure)
                save(figures, arguments.to)
                print(figure.line(), flush=True)
        for what in WHOLE:
            for figure in of_the_whole(what, arguments, Path(scratch)) if what in arguments.what else ():
                figures.append(figure)
                save(figures, arguments.to)
                print(figure.line(), flush=True)
    print(f"\nAll figures, also in {arguments.to}:")
    everything = save(figures, arguments.to)
    for figure in everything:
        print(figure.line())
    return 1 if any(figure.met is False for figure in everything) else 0


if __name__ == "__main__":
    sys.exit(main())
