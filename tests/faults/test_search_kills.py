"""Searches in rounds, their driver killed in mid-round: the rows are those of a search that nothing happened to."""

import pandas as pd
import pytest

from tests.faults.conftest import Study, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_the_driver_of_a_search_is_killed(tmp_path, sampler):
    search = {"kind": "optuna", "sampler": sampler, "trials": 4, "round_size": 2}
    settings = {"epochs": 60, "seeds": 2, "search": search, "controls": ["alpha0"], "evaluation": {"references": []}}
    study, plain = Study(tmp_path / "killed", **settings), Study(tmp_path / "plain", **settings)
    process = study.start_paced("--executor", "loop")
    wait_for(lambda: len(study.rows_on_disk()) >= 7, process)  # 2 controls, round 1 of 4 trials, round 2 has begun
    process.kill()
    process.communicate()
    before = study.rows_on_disk()
    assert len(before) < 10, "killed too late"
    for each in (study, plain):
        each.run_here()
    after = study.rows_on_disk()
    assert {name: after[name] for name in before} == before, "a finished trial was run again"
    assert len(after) == 10
    pd.testing.assert_frame_equal(study.numbers(), plain.numbers(), check_exact=True)
