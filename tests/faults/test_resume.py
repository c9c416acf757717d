"""An interrupted trial goes on at the epoch boundary, whoever was killed: no epoch of it is trained twice."""

import io
import subprocess
import sys

import pandas as pd
import psutil
import pytest
from rich.console import Console

from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study_file import load_study
from llmkt_ray.sweep.run import run_study
from tests.faults.conftest import Study, wait_for
from tests.faults.noting import notes

pytestmark = pytest.mark.ray
EPOCHS = 30


@pytest.mark.parametrize(("executor", "killed"), [("loop", "driver"), ("ray", "worker")])
def test_no_epoch_is_trained_twice(tmp_path, executor, killed):
    study = Study(tmp_path / "killed", epochs=EPOCHS, seeds=1, controls=["alpha0"], transfer={"alphas": [0.5]})

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.faults.noting", str(study.file), executor]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=study.environment)

    process = start()
    wait_for(lambda: any(epoch >= EPOCHS // 2 for _, _, epoch in notes(study.folder)), process)
    key, victim, _ = notes(study.folder)[-1]
    psutil.Process(victim).kill()
    if killed == "driver":
        assert victim == process.pid
        process.communicate()
        process = start()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err

    of_trial = [(pid, epoch) for noted, pid, epoch in notes(study.folder) if noted == key]
    assert len({pid for pid, _ in of_trial}) == 2, "another process finished it"
    epochs = [epoch for _, epoch in of_trial]
    assert epochs == sorted(set(epochs)), f"an epoch was trained twice: {epochs}"
    assert EPOCHS - 1 <= len(epochs) <= EPOCHS, "one may have been killed between its checkpoint and its note"

    plain = Study(tmp_path / "plain", epochs=EPOCHS, seeds=1, controls=["alpha0"], transfer={"alphas": [0.5]})
    run_study(load_study(plain.file), executor="loop", console=Console(file=io.StringIO()))
    pd.testing.assert_frame_equal(study.numbers(), plain.numbers(), check_exact=True)
    one, other = (Ledger(each.folder).epochs().drop(columns="duration_s") for each in (study, plain))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
