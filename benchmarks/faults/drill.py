"""Kills studies on a local cluster of two nodes at random moments, again and again, and prints the kill table.

    python -m benchmarks.faults.drill --kills 12

The studies are a grid and searches with random, QMC and TPE suggestions, in turn. Each round starts `llmkt run`, waits a random
time (every second time counted from when trials run, so that slow machines are not struck before), and kills by SIGKILL a trial's
worker, a node, the driver or the head with all of its processes: each as often as the others. A study is run again until all its rows
are there; after every kill the rows are compared with those of a run that nothing happened to.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from llmkt_ray.results.folder import holder
from tests.clusters import Head, kill_tree
from tests.faults.conftest import Study, gone, is_trial

TARGETS = ("worker", "node", "driver", "head")
COLUMNS = ("round", "study", "of", "after s", "what was running", "rows then", "rows after", "lost", "doubled", "repeated", "identical")
EPOCHS = 400
SEARCHES: dict[str, dict[str, Any]] = {
    "grid": {},
    **{
        sampler: {"search": {"kind": "optuna", "sampler": sampler, "trials": 4, "round_size": 2}, "controls": ["alpha0"]}
        for sampler in ("random", "qmc", "tpe")
    },
}


class Drill:
    """A cluster that is mended after every kill, and the studies that run on it.

    Args:
        root: a folder for all of it.
        draw: what decides about moments and targets.
        longest: seconds from the start of a run to the kill at the most.
    """

    def __init__(self, root: Path, draw: random.Random, longest: float) -> None:
        self._root, self._draw, self._longest = root, draw, longest
        self._expected: dict[str, pd.DataFrame] = {}
        self._targets = self._drawn_targets()
        self._head = self._new_head()

    def study(self, kind: str, number: int) -> Study:
        """Returns a new study, and runs its like where nothing happens to it, if that is not known yet."""
        if kind not in self._expected:
            undisturbed = Study(self._root / f"undisturbed-{kind}", epochs=EPOCHS, seeds=2, **SEARCHES[kind])
            undisturbed.run_here()
            self._expected[kind] = undisturbed.numbers().set_index("trial_key")
        return Study(self._root / str(number), epochs=EPOCHS, seeds=2, **SEARCHES[kind])

    def strike(self, kind: str, study: Study) -> tuple[str, ...]:
        """Starts a run, kills one of its processes after a random time, and returns a line of the table."""
        self._mend()
        runs, process, begun = logs(study.folder), study.on(self._head).start(), time.monotonic()
        target, wait = next(self._targets), self._draw.uniform(1.0, self._longest)
        if target == "worker" or self._draw.random() < 0.5:
            while process.poll() is None and not self._workers():
                time.sleep(0.05)
            wait = time.monotonic() - begun + wait / 3
        while process.poll() is None and time.monotonic() - begun < wait:
            time.sleep(0.05)
        moment, workers = time.monotonic() - begun, self._workers()
        doing, then = what_runs(logs(study.folder) - runs), study.rows_on_disk()
        if process.poll() is not None or (target == "worker" and not workers):
            target, doing = "none", "it had ended, or was between two stages"
        self._kill(target, process, workers)
        process.communicate(timeout=600)
        assert target != "driver" or gone(workers), "trials of a dead driver go on"
        assert holder(study.folder) is None, "a dead process holds the lock"
        if target == "head":
            self._head.end()
            self._head = self._new_head()
        after = study.rows_on_disk()
        lost, repeated = len(then.keys() - after.keys()), sum(after.get(name, stamp) != stamp for name, stamp in then.items())
        return (
            kind, target, f"{moment:.1f}", doing, str(len(then)), str(len(after)), str(lost), str(doubled(study)), str(repeated),
            "yes" if self._is_identical(kind, study) else "NO",
        )  # fmt: skip

    def is_whole(self, kind: str, study: Study) -> bool:
        """Says whether all rows are there; fails unless each is then the one expected, bit for bit."""
        if len(study.rows_on_disk()) < len(self._expected[kind]):
            return False
        pd.testing.assert_frame_equal(study.numbers().set_index("trial_key"), self._expected[kind], check_exact=True)
        assert doubled(study) == 0
        return True

    def finish(self, kind: str, study: Study) -> None:
        """Runs a study to its end and compares its rows."""
        self._mend()
        assert study.on(self._head).run() == 0, study.said
        assert self.is_whole(kind, study)

    def end(self) -> None:
        """Ends the cluster."""
        self._head.end()

    def _is_identical(self, kind: str, study: Study) -> bool:
        """Says whether every row that is there is the one expected, bit for bit."""
        if not study.rows_on_disk():
            return True
        found = study.numbers().set_index("trial_key")
        try:
            # What is not there yet may leave columns empty or out, and so of another type.
            there = [name for name in self._expected[kind] if name in found]
            expected = self._expected[kind].loc[found.index, there]
            pd.testing.assert_frame_equal(found[there], expected, check_exact=True, check_dtype=False)
        except (AssertionError, KeyError):
            return False
        return True

    def _drawn_targets(self) -> Iterator[str]:
        while True:
            yield from self._draw.sample(TARGETS, len(TARGETS))

    def _new_head(self) -> Head:
        head = Head(self._root / "home", num_cpus=1).wait()
        head.add_node(num_cpus=1)
        return head

    def _mend(self) -> None:
        """Replaces a head that has ended by itself, as Ray's do on an overloaded machine."""
        if self._head.process.poll() is not None:
            self._head.end()
            self._head = self._new_head()

    def _workers(self) -> list[psutil.Process]:
        found = []
        for top in (self._head.process, *self._head.nodes):
            try:
                found += [child for child in psutil.Process(top.pid).children(recursive=True) if is_trial(child)]
            except psutil.Error:
                continue
        return found

    def _kill(self, target: str, process: subprocess.Popen[str], workers: list[psutil.Process]) -> None:
        if target == "worker":
            self._draw.choice(workers).kill()
        elif target == "node":
            kill_tree(psutil.Process(self._head.nodes[-1].pid))
            self._head.add_node(num_cpus=1)
        elif target == "driver":
            process.kill()
        elif target == "head":
            kill_tree(psutil.Process(self._head.process.pid))


def logs(folder: Path) -> set[Path]:
    """Returns the logs of a study's runs so far."""
    return set((folder / "logs").glob("*.jsonl"))


def what_runs(files: set[Path]) -> str:
    """Returns what a run, by its log, is doing now: its stage and how many trials."""
    stage, running = "not begun", set[str]()
    for line in "".join(path.read_text() for path in files).splitlines(keepends=True):
        event = json.loads(line) if line.endswith("\n") else {}
        if event.get("event") == "run_started":
            stage = "preparing"
        elif event.get("event") in ("stage_started", "stage_ended"):
            stage, running = event["stage"] if event["event"] == "stage_started" else f"after {event['stage']}", set()
        elif event.get("event") == "trial_started":
            running.add(event["trial"])
        elif event.get("event") in ("trial_ended", "trial_interrupted"):
            running.discard(event["trial"])
    return f"{stage}: {len(running)} trials" if running else stage


def doubled(study: Study) -> int:
    """Returns how many rows of a ledger are of a trial that has another one."""
    files = (study.folder / "ledger").rglob("[!.]*.parquet")
    counts = Counter(key for path in files for key in pq.read_table(path, columns=["trial_key"]).column(0).to_pylist())
    return sum(counts.values()) - len(counts)


def struck(line: tuple[str, ...]) -> bool:
    """Says whether a round killed something: the run may end before, or be between two stages when a worker is to be killed."""
    return line[1] != "none"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=12)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--longest", type=float, default=25.0, help="seconds from the start of a run to its kill at the most")
    options.add_argument("--minutes", type=float, default=30.0, help="no kill after that")
    given = options.parse_args()
    until = time.monotonic() + 60 * given.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster is ended then too
    table, console = Table(*COLUMNS, title="kill table", title_justify="left", box=None), Console(width=150)
    lines, finished, kinds = list[tuple[str, ...]](), 0, list(SEARCHES)
    with tempfile.TemporaryDirectory(prefix="llmkt-drill-") as folder:
        drill = Drill(Path(folder), random.Random(given.seed), given.longest)
        try:
            kind, study = kinds[0], drill.study(kinds[0], 0)
            while sum(map(struck, lines)) < given.kills and time.monotonic() < until:
                lines.append(drill.strike(kind, study))
                table.add_row(str(len(lines)), *lines[-1])
                console.print(f"round {len(lines)}: {', '.join(lines[-1])}", highlight=False)  # as they come: a drill is long
                if drill.is_whole(kind, study):
                    finished += 1
                    kind = kinds[finished % len(kinds)]
                    study = drill.study(kind, finished)
            drill.finish(kind, study)
        finally:
            drill.end()
    console.print(table)
    rounds = [dict(zip(COLUMNS[1:], line, strict=True)) for line in lines]
    harm = {what: sum(int(one[what]) for one in rounds) for what in ("lost", "doubled", "repeated")}
    harm["not as undisturbed"] = sum(one["identical"] != "yes" for one in rounds)
    found = ", ".join(f"{number} {what}" for what, number in harm.items())
    console.print(
        f"{sum(map(struck, lines))} kills in {len(lines)} rounds, rows and rounds: {found}; "
        f"{finished + 1} studies then ended with the rows of undisturbed ones"
    )
    if any(harm.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
