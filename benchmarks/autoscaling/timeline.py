"""A study on a cluster that grows from zero and shrinks back: prints stages and nodes over time; a node is taken in the middle.

    python -m benchmarks.autoscaling.timeline               # profiles by a template, in an actor that holds a GPU
    python -m benchmarks.autoscaling.timeline --vllm        # profiles by vLLM (CPU build, a tiny Llama) on the node with the fake GPU

The cluster is Ray's fake multi-node provider under autoscaler v2: nodes are real raylets on this machine, their GPUs a number. A node is
ended after 15 idle seconds. Exit code 1 if a trial is lost, or the rows differ from those of a plain loop.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="token", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1")  # before Ray is imported

import pandas as pd
import ray
from rich.console import Console

from llmkt_ray.profiles.engines import registry
from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.study import StudyConfig
from llmkt_ray.sweep.cluster import cluster
from llmkt_ray.sweep.run import run_study
from tests.clusters import Head, Watch, kill_tree
from tests.ray.test_autoscaling import OnGpu
from tests.tiny import tiny_study

EPOCHS = 2000
ENGINE = {"enforce_eager": True, "dtype": "float32", "max_num_seqs": 8, "kv_cache_memory_bytes": 1 << 26}


def study_of(root: Path, llama: Path | None) -> StudyConfig:
    more = {}
    if llama is not None:
        profile = {"llm": "vllm-sync", "model": str(llama), "prompt_budget": 900, "max_tokens": 24, "engine": ENGINE, "min_coverage": 0.1}
        more = {"profiles": [profile | {"temperature": 1.0}]}
    model = {"name": "BPR", "epochs": EPOCHS, "batch_size": 256, "hyperparameters": {"embedding_size": 8}}
    resources = {"trial": {"cpus": 1}, "profiles": {"cpus": 1, "gpus": 1}}
    return tiny_study(root, models=[model], training={"evaluate_every": 500}, seeds=3, resources=resources, **more)


def numbers(study: StudyConfig) -> pd.DataFrame:
    return Ledger(study_folder(study)).trials().drop(columns=[*MEASUREMENT_COLUMNS, "study_key"])


def take_a_node(head: Head, study: StudyConfig, events: list[tuple[float, str]]) -> None:
    """Kills a node that runs a trial, as a spot node is taken, when a third of the rows is there."""
    ledger = Ledger(study_folder(study))
    while len(ledger.done()) < 5:
        time.sleep(0.1)
    working = {n["NodeID"] for n in ray.nodes() if n["Alive"] and "trials" in n["Resources"]}
    for node, raylet in head.raylets().items():
        if node in working:
            events.append((time.time(), f"SIGKILL for a CPU node, {len(ledger.done())} rows there"))
            kill_tree(raylet)
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", action="store_true", help="profiles by a real engine; needs the test environment")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmkt-grow-") as scratch:
        root = Path(scratch)
        llama = None
        if arguments.vllm:
            from tests.llm.tiny_llama import build_tiny_llama

            llama = build_tiny_llama(root / "llama", [f"Title i{n} drama comedy horror western" for n in range(40)])
        else:
            registry.ENGINES["template"] = lambda config, resources: OnGpu(resources)
        study = study_of(root, llama)
        head = Head(root / "home", num_cpus=0, node_types={"cpu": {"CPU": 1, "trials": 1}, "gpu": {"CPU": 1, "GPU": 1}}, idle_s=15)
        events: list[tuple[float, str]] = []
        try:
            head.wait()
            os.environ["RAY_AUTH_TOKEN"] = head.token
            with cluster(head.gcs_address), Watch() as watch:
                begun = time.time()
                threading.Thread(target=take_a_node, args=(head, study, events), daemon=True).start()
                summary = run_study(study, console=Console(file=io.StringIO()))
                events.append((time.time(), "the study has ended"))
                watch.until((0, 0))
        finally:
            head.end()
        events += [(begun + seconds, f"nodes: {cpus} CPU, {gpus} GPU") for seconds, cpus, gpus in watch.seen]
        for path in Path(study_folder(study), "logs").glob("*.jsonl"):
            for line in map(json.loads, path.read_text().splitlines()):
                if line["event"] in ("stage_started", "stage_ended"):
                    at = pd.Timestamp(line["time"]).timestamp()
                    events.append((at, f"{line['stage']} {'begin' if line['event'] == 'stage_started' else 'end'}"))
        for at, what in sorted(events):
            print(f"{at - begun:8.1f} s  {what}")
        # The same trials in a plain loop, on the artifacts that the cluster has made.
        os.environ.pop("RAY_AUTH_TOKEN", None)
        plain = study.model_copy(update={"name": "plain"})
        run_study(plain, executor="loop", console=Console(file=io.StringIO()))
        equal = numbers(study).equals(numbers(plain))
        print(f"{summary.ran} trials, {summary.failed} failed; rows equal to a plain loop's: {'yes' if equal else 'NO'}")
        return 0 if equal and not summary.failed and summary.ran == len(numbers(plain)) else 1


if __name__ == "__main__":
    sys.exit(main())
