"""Real processes killed at real moments: afterwards no trial is lost, none doubled, and every number is the same."""

import signal
import subprocess

import pytest

from llmkt_ray.results.folder import holder
from tests.faults.conftest import Study, gone, trial_workers, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


def kill_the_driver(process: subprocess.Popen[str], study: Study) -> dict[str, int]:
    """Kills a driver in the middle of its study; returns the rows that are there then."""
    working = trial_workers(process)
    process.kill()
    process.communicate()
    assert gone(working), "trials of a killed driver went on"
    assert holder(study.folder) is None, "a dead process holds no lock"
    return study.rows_on_disk()


def test_the_driver_is_killed(study, uninterrupted):
    process = study.start_paced()
    wait_for(lambda: len(study.rows_on_disk()) >= 1, process)
    before = kill_the_driver(process, study)
    assert len(before) < len(uninterrupted)
    study.finish(before, uninterrupted, by_command=True)


def test_every_worker_is_killed_and_later_the_driver(study, uninterrupted):
    process = study.start_paced()
    workers = wait_for(lambda: len(study.rows_on_disk()) >= 1 and trial_workers(process), process)
    for worker in workers:
        worker.kill()
    before = study.rows_on_disk()
    wait_for(lambda: len(study.rows_on_disk()) >= len(before) + 2, process)  # other workers have gone on
    before = kill_the_driver(process, study)
    assert len(before) < len(uninterrupted)
    study.finish(before, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_hand_or_by_a_scheduler(study, uninterrupted, number):
    process = study.start_paced()
    wait_for(lambda: len(study.rows_on_disk()) >= 1, process)
    working = trial_workers(process)
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:  # Python drops an interrupt that comes inside a callback or a destructor: sent again, as by hand
        process.send_signal(number)
        _, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "interrupted, " in err
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert gone(working)
    study.finish(study.rows_on_disk(), uninterrupted)
