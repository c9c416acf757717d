"""An interrupted trial goes on at the epoch boundary, whoever was killed: no epoch of it is trained twice."""

from pathlib import Path

import pandas as pd
import psutil
import pytest

from llmkt_ray.results.ledger import Ledger
from tests.faults.conftest import Study, wait_for
from tests.faults.noting import notes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
EPOCHS = 60


def one_treated_trial(root: Path) -> Study:
    return Study(root, epochs=EPOCHS, controls=["alpha0"], transfer={"alphas": [0.5]})


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Study:
    """The same study, run without a kill."""
    study = one_treated_trial(tmp_path_factory.mktemp("plain"))
    study.run_here()
    return study


@pytest.mark.parametrize(("executor", "killed"), [("loop", "driver"), ("ray", "worker")])
def test_no_epoch_is_trained_twice(tmp_path, plain, executor, killed):
    study = one_treated_trial(tmp_path)
    process = study.start_noting(executor)
    wait_for(lambda: any(epoch >= 8 for _, _, epoch in notes(study.folder)), process)
    key, victim, _ = notes(study.folder)[-1]
    psutil.Process(victim).kill()
    if killed == "driver":
        assert victim == process.pid
        process.communicate()
        process = study.start_noting(executor)
    _, err = process.communicate(timeout=450)
    assert process.returncode == 0, err

    of_trial = [(pid, epoch) for noted, pid, epoch in notes(study.folder) if noted == key]
    assert len({pid for pid, _ in of_trial}) == 2, "another process finished it"
    epochs = [epoch for _, epoch in of_trial]
    assert epochs == sorted(set(epochs)), f"an epoch was trained twice: {epochs}"
    assert EPOCHS - 1 <= len(epochs) <= EPOCHS, "one may have been killed between its checkpoint and its note"

    pd.testing.assert_frame_equal(study.numbers(), plain.numbers(), check_exact=True)
    one, other = (Ledger(each.folder).epochs().drop(columns="duration_s") for each in (study, plain))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
