"""Kills what writes profiles at random moments, again and again, and prints the kill table.

    python -m benchmarks.faults.profiles_drill --kills 8

Each round starts a process that writes the profiles of 144 users with a real vLLM on a tiny Llama, waits until a random number of rows is
there, and kills the driver or its engine (the actor, or the engine core below it) with SIGKILL. A killed driver is started again until
all is written; then every user must have exactly one row with a text, and no process of an engine may be left.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tests.faults.profile_writer import USERS, Writing, engines, family

PATIENCE_S = 60
"""How long engines of a dead driver may take to end before they count as left over."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=8)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--llm", nargs="+", default=["vllm-sync", "vllm"])
    given = options.parse_args()
    draw, console = random.Random(given.seed), Console(width=140)
    title = "kill table: profiles"
    table = Table("kill", "engine", "of", "rows before", "rows then", "engines left", title=title, title_justify="left", box=None)
    with tempfile.TemporaryDirectory(prefix="llmkt-drill-") as root:
        writing: dict[str, Writing] = {}
        sets = 0
        for number in range(given.kills):
            llm = given.llm[number % len(given.llm)]
            if llm not in writing:
                folder = Path(root) / f"{number}"
                folder.mkdir()
                writing[llm] = Writing(folder, llm)
            line = strike(writing[llm], draw)
            console.print(f"kill {number + 1}: {', '.join(line)}", highlight=False)
            table.add_row(str(number + 1), llm, *line)
            if writing[llm].rows_on_disk() == USERS:
                sets += finish(writing.pop(llm))
        sets += sum(finish(left) for left in writing.values())
    console.print(table)
    console.print(
        f"after {given.kills} kills: {sets} sets of {USERS} profiles whole, every user with one row and a text, no engine left over"
    )


def strike(writing: Writing, draw: random.Random) -> tuple[str, ...]:
    """Starts a driver, kills it or its engine at a random number of rows, and returns a line of the table."""
    before = writing.rows_on_disk()
    moment, victim = draw.randint(before, USERS - 4), draw.choice(["driver", "engine"])
    driver = writing.start()
    seen: set[psutil.Process] = set()
    while driver.poll() is None:
        seen |= set(engines(family(driver.pid)))
        if seen and writing.rows_on_disk() >= moment:
            break
        time.sleep(0.1)
    if driver.poll() is not None:
        victim = "none: it had ended"
    elif victim == "engine":
        cores = engines(list(seen), ("VLLM::EngineCore",)) or engines(list(seen), ("ray::Engine",))
        victim = "engine core" if writing.llm == "vllm" else "actor"
        for process in cores:
            process.kill()
        while driver.poll() is None:
            seen |= set(engines(family(driver.pid)))
            time.sleep(0.1)
        assert driver.returncode == 0, (writing.folder / "log").read_text(errors="replace")[-3000:]
    else:
        driver.kill()
        driver.wait()
    alive = psutil.wait_procs(list(seen), timeout=PATIENCE_S)[1]
    return victim, str(before), str(writing.rows_on_disk()), str(len(alive))


def finish(writing: Writing) -> int:
    """Writes what is missing and returns 1.

    Raises:
        AssertionError: a user has no row, several, or one without a text.
    """
    driver = writing.start()
    assert driver.wait() == 0, (writing.folder / "log").read_text(errors="replace")[-3000:]
    assert writing.problems() == [], writing.problems()
    return 1


if __name__ == "__main__":
    main()
