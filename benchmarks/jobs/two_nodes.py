"""A study submitted as a job to a local two-node cluster, a node killed in the middle, the report fetched; prints the timeline.

    python -m benchmarks.jobs.two_nodes                                  # sweeps/alpha_sensitivity.yaml, about 15 minutes on 2 cores
    python -m benchmarks.jobs.two_nodes --study sweeps/quickstart.yaml

Everything is real: a Ray head with token authentication, a second node, `llmkt submit`, SIGKILL for every process of that node when a
third of the rows is there, a new node half a minute later, `llmkt fetch`. It ends with exit code 1 if a trial was lost or doubled.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import yaml

from llmkt_ray.results.ledger import Ledger
from tests.clusters import Head, kill_tree

ROOT = Path(__file__).parents[2]


class Timeline:
    """What happened when, in seconds since the submission."""

    def __init__(self) -> None:
        self.begun = time.time()
        self.events: list[tuple[float, str]] = []

    def add(self, what: str, at: float | None = None) -> None:
        self.events.append(((at or time.time()) - self.begun, what))
        print(f"{self.events[-1][0]:8.1f} s  {what}", flush=True)


def command(head: Head, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "llmkt_ray.cli", *arguments, "--address", head.address]
    environment = head.environment(head.token) | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def rows(folder: Path) -> int:
    return len(list((folder / "ledger" / "trials").glob("[!.]*.parquet"))) if folder.exists() else 0


def journal(folder: Path) -> list[dict]:
    lines = [line for path in sorted((folder / "logs").glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def nodes(head: Head) -> int:
    return sum(node["raylet"].get("state") == "ALIVE" for node in head.get("/nodes?view=summary")["data"]["summary"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="sweeps/alpha_sensitivity.yaml")
    parser.add_argument("--to", default=None, help="folder for the fetched results; default: a temporary one")
    arguments = parser.parse_args()
    name = yaml.safe_load((ROOT / arguments.study).read_text())["name"]
    with tempfile.TemporaryDirectory(prefix="llmkt-demo-") as scratch:
        home, to = Path(scratch) / "home", Path(arguments.to or Path(scratch) / "here")
        folder = home / "results" / name
        head = Head(home, num_cpus=1)
        try:
            head.wait()
            second = head.add_node(num_cpus=1)
            while nodes(head) < 2:
                time.sleep(0.5)
            time_line = Timeline()
            time_line.add(f"2 nodes of 1 CPU are up; llmkt submit {arguments.study}")
            ended: list[subprocess.CompletedProcess[str]] = []
            job = threading.Thread(target=lambda: ended.append(command(head, "submit", arguments.study)), daemon=True)
            job.start()
            planned = None
            while job.is_alive() and (planned is None or rows(folder) < planned / 3):
                time.sleep(0.5)
                card = folder / "card.json"
                planned = json.loads(card.read_text())["planned_trials"] if card.exists() else None
            running = json.loads((folder / "progress.json").read_text())["running"]
            before = rows(folder)
            kill_tree(psutil.Process(second.pid))
            time_line.add(f"SIGKILL for every process of the second node: {before} of {planned} rows there, {len(running)} trials running")
            time.sleep(30)
            head.add_node(num_cpus=1)
            time_line.add(f"a new node: {rows(folder)} rows there")
            job.join()
            time_line.add(f"the job has ended: {ended[0].stdout.strip().splitlines()[-1]}")
            fetched = command(head, "fetch", arguments.study, "--to", str(to))
            time_line.add(f"llmkt fetch: {fetched.stdout.strip()}")
            if ended[0].returncode:
                print(ended[0].stdout[-3000:], ended[0].stderr[-1000:], sep="\n")
        finally:
            head.end()
        said, ledger = journal(folder), Ledger(to / name)
        trials = ledger.trials()
        interrupted = [line["name"] for line in said if line["event"] == "trial_interrupted"]
        failed, different = int((trials["status"] == "failed").sum()), trials["trial_key"].nunique()
        print(f"\nrows {len(trials)} of {planned} planned, {different} different, {failed} failed")
        print(f"interrupted by the kill and gone on with: {', '.join(interrupted) or 'none'}")
        print(f"report: {to / name / 'report.html'}, {(to / name / 'report.html').stat().st_size / 1e6:.2f} MB")
        print("stages: " + ", ".join(f"{line['stage']} {line['seconds']:.0f} s" for line in said if line["event"] == "stage_ended"))
        whole = len(trials) == planned == trials["trial_key"].nunique() and not (trials["status"] == "failed").any()
        print("no trial lost, none doubled, none failed" if whole else "SOMETHING IS MISSING")
        return 0 if whole and ended[0].returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
