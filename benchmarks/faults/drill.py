"""Kills a study at random moments, again and again, and prints the kill table.

    python -m benchmarks.faults.drill --kills 10

Each round starts `llmkt run`, waits a random time, and kills the driver or a trial's worker with SIGKILL. The study is run
again until it is done. Then every number is compared with those of a run that nothing happened to.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmkt_ray.results.folder import holder
from tests.faults.conftest import Study, gone, trial_workers


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--longest", type=float, default=25.0, help="seconds before a kill at the most")
    given = options.parse_args()
    draw = random.Random(given.seed)
    table = Table("kill", "of", "after s", "rows before", "rows then", "rows changed", title="kill table", title_justify="left", box=None)
    with tempfile.TemporaryDirectory(prefix="llmkt-drill-") as folder:
        undisturbed = Study(Path(folder) / "undisturbed")
        assert undisturbed.run("--executor", "loop") == 0, undisturbed.said
        expected = undisturbed.numbers()
        study, number = Study(Path(folder) / "killed"), 0
        while number < given.kills:
            before = study.rows_on_disk()
            if len(before) == len(expected):
                check(study, expected)
                study = Study(Path(folder) / f"killed-{number}")
                continue
            number += 1
            table.add_row(str(number), *strike(study, draw, given.longest, before))
        assert study.run() == 0, study.said
        check(study, expected)
    console = Console()
    console.print(table)
    console.print(f"after {given.kills} kills: no row lost, none doubled, all {len(expected)} rows of every study identical")


def strike(study: Study, draw: random.Random, longest: float, before: dict[str, int]) -> tuple[str, ...]:
    """Starts a run, kills one of its processes after a random time, and returns a line of the table."""
    process, wait = study.start(), draw.uniform(1.0, longest)
    begun = time.monotonic()
    while time.monotonic() - begun < wait and process.poll() is None:
        time.sleep(0.05)
    workers = trial_workers(process) if process.poll() is None else []
    target = "worker" if workers and draw.random() < 0.5 else "driver"
    if process.poll() is not None:
        target = "none: it had ended"
    elif target == "worker":
        workers[0].kill()
    else:
        process.kill()
    process.communicate(timeout=600)
    assert gone(workers), "trials of a dead driver go on"
    assert holder(study.folder) is None
    after = study.rows_on_disk()
    changed = sum(after.get(name) != stamp for name, stamp in before.items())
    return target, f"{wait:.1f}", str(len(before)), str(len(after)), str(changed)


def check(study: Study, expected: object) -> None:
    """Fails unless the study's rows are those expected, bit for bit."""
    import pandas as pd

    pd.testing.assert_frame_equal(study.numbers(), expected, check_exact=True)


if __name__ == "__main__":
    main()
