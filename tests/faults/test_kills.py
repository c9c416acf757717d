"""Real processes killed at real moments: afterwards no trial is lost, none doubled, and every number is the same."""

import signal

import pandas as pd
import pytest

from llmkt_ray.results.folder import holder
from tests.faults.conftest import gone, trial_workers, wait_for

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("rows", [1, 4])
def test_the_driver_is_killed(study, uninterrupted, rows):
    process = study.start()
    wait_for(lambda: len(study.rows_on_disk()) >= rows, process)
    working = trial_workers(process)
    process.kill()
    process.communicate()
    assert gone(working), "trials of a killed driver went on"
    before = study.rows_on_disk()
    assert len(before) < len(uninterrupted)
    assert holder(study.folder) is None, "a dead process holds no lock"
    study.finish(before, uninterrupted)


def test_a_trials_worker_is_killed(study, uninterrupted):
    process = study.start()
    wait_for(lambda: len(study.rows_on_disk()) >= 1 and bool(trial_workers(process)), process)
    for worker in trial_workers(process):
        worker.kill()
    process.communicate(timeout=240)
    assert process.returncode == 0
    pd.testing.assert_frame_equal(study.numbers(), uninterrupted, check_exact=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_hand_or_by_a_scheduler(study, uninterrupted, number):
    process = study.start()
    wait_for(lambda: len(study.rows_on_disk()) >= 1, process)
    working = trial_workers(process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted, " in err
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert gone(working)
    study.finish(study.rows_on_disk(), uninterrupted)
