import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from llmkt_ray.stats.corrections import benjamini_hochberg, equivalence_p, holm
from llmkt_ray.stats.interval import interval

P = [0.01, 0.04, 0.03, 0.005]


def test_holm_steps_down():
    """Holm (1979): the smallest p times n, the next times n - 1, and never below the one before. A peer leaves the steps out."""
    assert holm(P) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_benjamini_hochberg_steps_up():
    """Scipy's own implementation is the second opinion."""
    assert benjamini_hochberg(P) == pytest.approx(stats.false_discovery_control(P))
    assert benjamini_hochberg(P) != pytest.approx([p * 4 for p in P])  # a peer multiplies all by n


def test_unknown_p_values_do_not_count():
    assert holm([0.01, np.nan, 0.02]) == pytest.approx([0.02, np.nan, 0.02], nan_ok=True)
    assert len(holm([])) == 0


def test_two_tails_are_tested():
    """A peer's significance script tests the wrong tail: an arm that loses must come out as clearly as one that wins."""
    d = np.random.default_rng(1).normal(0.5, 1, (1, 200))
    assert interval(d).p == pytest.approx(interval(-d).p)
    assert interval(-d).high < 0


def test_equivalence_is_statsmodels_tost():
    d = np.random.default_rng(2).normal(0.01, 0.1, 150)
    theirs = DescrStatsW(d).ttost_mean(-0.03, 0.03)[0]
    assert equivalence_p(interval(d[None, :]), 0.03) == pytest.approx(theirs, rel=1e-9)


def test_equivalence_is_the_90_percent_interval_within_the_bound():
    for scale in (0.1, 0.15, 0.2, 0.25, 0.3):
        d = np.random.default_rng(3).normal(0.005, scale, (1, 150))
        inner = interval(d, level=0.9)
        assert (equivalence_p(interval(d), 0.03) <= 0.05) == (inner.low > -0.03 and inner.high < 0.03)


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
def test_with_several_seeds_equivalence_is_never_claimed_beyond_the_90_percent_interval(n_seeds):
    rng, said = np.random.default_rng(4), 0
    for _ in range(100):
        d = rng.normal(0.005, 0.004, (n_seeds, 1)) + rng.normal(0, 0.1, (1, 150)) + rng.normal(0, 0.1, (n_seeds, 150))
        inner, bound = interval(d, level=0.9), 0.03
        if equivalence_p(interval(d), bound) <= 0.05:
            said += 1
            assert -bound < inner.low
            assert inner.high < bound
    assert said > 20


def test_an_equivalence_bound_must_be_positive():
    with pytest.raises(ValueError, match="bound must be positive, but got 0"):
        equivalence_p(interval(np.ones((1, 3))), 0)
