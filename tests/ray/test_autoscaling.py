"""A cluster that grows from nothing and shrinks back: a GPU node for profiles, CPU nodes for trials, one of them taken: no trial lost."""

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import ray
from rich.console import Console

from llmkt_ray.errors import ResourceError
from llmkt_ray.profiles.engines import registry
from llmkt_ray.profiles.engines.template import TemplateEngine
from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.sweep.autoscaling import can_grow
from llmkt_ray.sweep.run import run_study
from tests.clusters import Head, Watch, kill_tree
from tests.connection import connected
from tests.faults.paced import paced
from tests.ray.test_executors import met
from tests.tiny import tiny_study

pytestmark = pytest.mark.ray
QUIET = Console(file=io.StringIO())
EPOCHS = 300
"""A paced trial takes six seconds or more: the GPU node goes while trials run, and a CPU node is then taken in the middle of one."""


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Iterator[Head]:
    """A head without CPUs, an autoscaler that may start two nodes of each kind, and a connection to it."""
    head = Head(
        tmp_path_factory.mktemp("home"), num_cpus=0, node_types={"cpu": {"CPU": 1, "trials": 1}, "gpu": {"CPU": 1, "GPU": 1}}, idle_s=15
    )
    with connected(head):
        yield head


class OnGpu(TemplateEngine):
    """The template, written by an actor that asks for what the study gives profile workers: as the engines of vLLM ask."""

    def __init__(self, resources) -> None:
        super().__init__(False)
        self._resources = resources

    def write(self, data, job):
        asked = {"num_cpus": self._resources.cpus, "num_gpus": self._resources.gpus}
        node = ray.get(ray.remote(**asked)(lambda: ray.get_runtime_context().get_node_id()).remote())
        assert any(n["NodeID"] == node and "GPU" in n["Resources"] for n in ray.nodes())
        return super().write(data, job)


def numbers(study) -> pd.DataFrame:
    return Ledger(study_folder(study)).trials().drop(columns=[*MEASUREMENT_COLUMNS, "study_key"])


def far_study(root, **more):
    content = {"models": [{"name": "BPR", "epochs": EPOCHS, "batch_size": 256, "hyperparameters": {"embedding_size": 8}}]}
    return tiny_study(root, **content, training={"evaluate_every": 100}, seeds=2, **more)


@pytest.mark.timeout(1200)
def test_from_nothing_and_back_with_a_node_taken_in_the_middle(grown, tmp_path, monkeypatch):
    plain = far_study(tmp_path / "loop")
    run_study(plain, executor="loop", console=QUIET)
    monkeypatch.setitem(registry.ENGINES, "template", lambda config, resources: OnGpu(resources))
    study = far_study(tmp_path / "ray", resources={"trial": {"cpus": 1}, "profiles": {"cpus": 1, "gpus": 1}})
    taken: list[str] = []
    over = threading.Event()

    def take_a_node() -> None:
        """As a spot node is taken: its processes are gone at once, in the middle of the trial that it runs."""
        ledger = Ledger(study_folder(study))
        # Once the record holds that there were two CPU nodes alone: they were wanted, and the GPU was let go.
        while len(ledger.done()) < 3 or not watch.seen or watch.seen[-1][1:] != (2, 0):
            if over.wait(0.1):
                return
        working = {n["NodeID"] for n in ray.nodes() if n["Alive"] and "trials" in n["Resources"]}
        for node, raylet in grown.raylets().items():
            if node in working:
                taken.append(node)
                kill_tree(raylet)
                return

    with Watch() as watch:
        assert watch.now() == (0, 0)
        assert can_grow()
        thief = threading.Thread(target=take_a_node, daemon=True)
        thief.start()
        try:
            summary = run_study(study, console=QUIET, run_trial=paced)
        finally:
            over.set()
            thief.join()
        watch.until((0, 0), 300)
    print("nodes over time (s, cpu, gpu):", watch.seen)
    assert (summary.ran, summary.failed) == (11, 0)
    assert taken, "no node was taken"
    log = "".join(path.read_text() for path in Path(study_folder(study), "logs").glob("*.jsonl"))
    assert '"event": "trial_interrupted"' in log
    pd.testing.assert_frame_equal(numbers(study), numbers(plain), check_exact=True)
    counts = [(cpus, gpus) for _, cpus, gpus in watch.seen]
    assert max(gpus for _, gpus in counts) == 1, "profiles asked for one GPU, and trials that need none start no GPU node"
    assert max(cpus for cpus, _ in counts) == 2, "waiting trials bring every node that may be had"
    assert counts.index((2, 0)) > max(i for i, (_, gpus) in enumerate(counts) if gpus), "the GPU goes when the profiles are written"
    assert (1, 0) in counts[counts.index((2, 0)) :], "a node was taken"
    assert counts[-1] == (0, 0)


def test_what_no_node_could_ever_hold_is_refused_at_once(grown, tmp_path):
    study = tiny_study(tmp_path, resources={"trial": {"cpus": 64}})
    with pytest.raises(ResourceError, match="asks for CPU 64, but no kind of node that the cluster's autoscaler may start has as much"):
        run_study(study, console=QUIET)


def test_four_trials_share_the_one_gpu_that_comes_up_for_them(grown, tmp_path):
    """Each ends when all four run at once: a quarter of a GPU each, on a cluster that had no node."""
    quarter = {"trial": {"cpus": 0.25, "gpus": 0.25}}
    study = tiny_study(tmp_path, resources=quarter, evaluation={"references": []}, controls=["alpha0", "shuffled"])
    with Watch() as watch:
        summary = run_study(study, console=QUIET, run_trial=met)
    assert (summary.ran, summary.failed) == (4, 0)
    assert max(gpus for _, _, gpus in watch.seen) == 1
    assert {json.loads(facts)["device_type"] for facts in Ledger(study_folder(study)).trials()["facts"]} == {"cuda"}
