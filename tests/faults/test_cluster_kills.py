"""A node and then the head of a real cluster killed under a run: no row lost, none doubled, no epoch trained twice, none different."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

from llmkt_ray.results.folder import holder
from tests.clusters import Head, kill_tree
from tests.faults.conftest import Study, wait_for
from tests.faults.noting import notes

pytestmark = pytest.mark.ray
EPOCHS = 60
"""Of some 30 ms each, a checkpoint after every one: long enough to be struck in the middle."""


@pytest.fixture
def start_head(tmp_path: Path) -> Iterator[Callable[[int], Head]]:
    """Starts heads of so many CPUs, and ends them all with their nodes."""
    started: list[Head] = []

    def start(num_cpus: int) -> Head:
        started.append(Head(tmp_path / "home", num_cpus=num_cpus))
        return started[-1]

    yield start
    for head in started:
        head.end()


def half_done(study: Study, top: int, latest: int) -> dict[str, int]:
    """Returns trial to process of the trials that processes below `top` are in the middle of, at an epoch of at most `latest`."""
    last = {key: (pid, epoch) for key, pid, epoch in notes(study.folder)}
    below = {child.pid for child in psutil.Process(top).children(recursive=True)}
    return {key: pid for key, (pid, epoch) in last.items() if pid in below and 3 <= epoch <= latest}


@pytest.mark.timeout(1200)
def test_a_node_is_killed_then_the_head(tmp_path, start_head):
    # No baseline: it would share its phase 1 with alpha 0, and then one of the two trains too few epochs to be struck twice.
    study, plain = (Study(tmp_path / name, epochs=EPOCHS, controls=["alpha0", "shuffled"]) for name in ("killed", "plain"))
    head = start_head(1).wait()
    node = head.add_node(num_cpus=1)
    process = study.on(head).start_noting()

    # Early in the trial, so that the one that goes on with it has as many epochs before it.
    ((trial, first),) = wait_for(lambda: len(study.rows_on_disk()) >= 2 and half_done(study, node.pid, 20), process).items()
    before = study.rows_on_disk()
    kill_tree(psutil.Process(node.pid))

    second = wait_for(lambda: half_done(study, head.process.pid, 40).get(trial), process)  # gone on with on what is left of the cluster
    kill_tree(psutil.Process(head.process.pid))
    another = start_head(2)
    _, err = process.communicate(timeout=400)
    assert process.returncode != 0, f"it says that it did not finish: {err}"
    assert holder(study.folder) is None, "a dead process holds no lock"
    after = study.rows_on_disk()
    assert {name: after[name] for name in before} == before
    assert f"{trial}.parquet" not in after, "the head was killed too late"

    process = study.on(another.wait()).start_noting()
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    last = study.rows_on_disk()
    assert {name: last[name] for name in after} == after, "a finished trial was run again"
    plain.run_here()
    pd.testing.assert_frame_equal(study.numbers(), plain.numbers(), check_exact=True)
    assert not list((study.folder / "checkpoints").glob("*")), "a checkpoint was left behind"

    for key in {key for key, _, _ in notes(study.folder)}:
        epochs = [epoch for noted, _, epoch in notes(study.folder) if noted == key]
        assert epochs == sorted(set(epochs)), f"an epoch was trained twice: {epochs}"
        assert EPOCHS - 2 <= len(epochs) <= EPOCHS, "one may be lost between its checkpoint and its note, at each kill"
    processes = list(dict.fromkeys(pid for key, pid, _ in notes(study.folder) if key == trial))
    assert processes[:2] == [first, second]
    assert len(processes) == 3, "a third one finished it"
