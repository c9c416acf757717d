import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkt_ray.errors import TrainingError
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.transfer.phases import ALPHA_SCHEDULES, PhasePlan


def plan(epochs, **schedule):
    one_phase = schedule.pop("one_phase", False)
    return PhasePlan(ScheduleConfig(**schedule), epochs, one_phase=one_phase)


@pytest.mark.parametrize(
    ("epochs", "switch", "first"), [(10, 0.5, 5), (11, 0.5, 5), (2, 0.5, 1), (100, 0.29, 29), (10, 0.7, 7), (7, 0.99, 6)]
)
def test_phase_1_is_the_floor_of_switch_times_epochs(epochs, switch, first):
    p = plan(epochs, switch=switch)
    assert [p.phase(e) for e in range(1, epochs + 1)] == [1] * first + [2] * (epochs - first)


@given(st.integers(2, 200), st.floats(0.01, 0.99))
def test_both_phases_have_an_epoch_or_the_plan_is_refused(epochs, switch):
    if 1 <= math.floor(switch * epochs + 1e-9) < epochs:
        p = plan(epochs, switch=switch)
        assert p.phase(1) == 1
        assert p.phase(epochs) == 2
        assert sum(p.switches_before(e) for e in range(1, epochs + 1)) == 1
    else:
        with pytest.raises(TrainingError, match="both phases"):
            plan(epochs, switch=switch)


@pytest.mark.parametrize(
    ("kind", "alphas", "selectable"),
    [
        ("two_phase", [0.4, 0.4, 0.0, 0.0], [False, False, True, True]),
        ("joint", [0.4, 0.4, 0.4, 0.4], [True, True, True, True]),
        ("pretrain", [1.0, 1.0, 0.0, 0.0], [False, False, True, True]),
        ("reversed", [0.0, 0.0, 0.4, 0.4], [False, False, True, True]),
    ],
)
def test_the_phase_arms(kind, alphas, selectable):
    p = plan(4, kind=kind)
    assert [p.alpha(0.4, e) for e in range(1, 5)] == alphas
    assert [p.transfers(e) for e in range(1, 5)] == [a > 0 for a in alphas]
    assert [p.selectable(e) for e in range(1, 5)] == selectable


def test_alpha_0_transfers_nothing_in_any_arm():
    for kind in ("two_phase", "joint", "pretrain", "reversed"):
        assert [plan(4, kind=kind).alpha(0.0, e) for e in range(1, 5)] == [0.0] * 4


def test_joint_has_no_switch():
    assert not any(plan(4, kind="joint").switches_before(e) for e in range(1, 6))


def test_a_baseline_has_one_phase_and_chooses_among_the_epochs_of_its_twins():
    baseline, twin = plan(6, one_phase=True), plan(6)
    assert [baseline.phase(e) for e in range(1, 7)] == [1] * 6
    assert not any(baseline.switches_before(e) or baseline.transfers(e) for e in range(1, 7))
    assert [baseline.selectable(e) for e in range(1, 7)] == [twin.selectable(e) for e in range(1, 7)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [0.8, 0.8, 0.8, 0.8]),
        ("linear", [0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.8 * (1 + math.cos(math.pi * t)) / 2 for t in (0, 0.25, 0.5, 0.75)]),
        ("step", [0.8, 0.8, 0.4, 0.4]),
    ],
)
def test_alpha_over_the_transferring_epochs(shape, expected):
    assert [plan(8, alpha=shape).alpha(0.8, e) for e in range(1, 5)] == pytest.approx(expected)
    late = plan(8, alpha=shape, kind="reversed")
    assert [late.alpha(0.8, e) for e in range(5, 9)] == pytest.approx(expected)


@given(st.sampled_from(ALPHA_SCHEDULES), st.integers(2, 50), st.floats(0.01, 1))
def test_alpha_starts_at_its_value_never_rises_and_stays_positive(shape, epochs, alpha):
    p = plan(epochs, alpha=shape)
    values = [p.alpha(alpha, e) for e in range(1, p.phase1_epochs + 1)]
    assert values[0] == alpha
    assert all(0 < later <= earlier for earlier, later in pairwise(values))
