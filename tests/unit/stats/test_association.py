import numpy as np
import pytest
from scipy import stats

from llmkt_ray.stats.association import spearman


def test_it_is_scipys_with_an_interval():
    rng = np.random.default_rng(1)
    x = rng.normal(size=400)
    y = np.exp(x) + rng.normal(size=400)
    found, scipys = spearman(x, y), stats.spearmanr(x, y)
    assert (found.estimate, found.p) == (pytest.approx(scipys.statistic), pytest.approx(scipys.pvalue))
    assert -1 < found.low < found.estimate < found.high < 1
    assert found.conditional == "conditional on these seeds"


def test_the_interval_covers_what_it_says():
    """Normal pairs with Pearson's r .5: Spearman's rho is 6 / pi asin(r / 2)."""
    rng, truth, covered = np.random.default_rng(2), 6 / np.pi * np.arcsin(0.25), 0
    for _ in range(400):
        x = rng.normal(size=80)
        found = spearman(x, 0.5 * x + np.sqrt(0.75) * rng.normal(size=80))
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_where_nothing_can_be_said():
    x = np.arange(30.0)
    assert spearman(x, np.ones(30)) is None
    assert spearman(x[:9], x[:9]) is None
    assert spearman(x, np.where(x < 25, np.nan, x)) is None
    assert spearman(x, x).estimate == pytest.approx(1)
