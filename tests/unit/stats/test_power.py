import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestIndPower

from llmkt_ray.stats.contrast import contrast, over_splits
from llmkt_ray.stats.interval import Components, interval
from llmkt_ray.stats.power import (
    detectable_by,
    detectable_over_splits,
    seeds_needed,
    seeds_needed_over_splits,
    smallest_detectable,
    splits_needed,
)


def test_the_two_sample_table_of_the_method():
    """CV 2 %, power .8: 4 seeds for a 5 % effect, 9 for 3 %, 17 for 2 %."""
    power = TTestIndPower()
    assert [math.ceil(power.solve_power(effect / 2, power=0.8, alpha=0.05)) for effect in (5, 3, 2)] == [4, 9, 17]


def test_what_is_called_detectable_is_found_four_times_in_five():
    parts, rng = Components(seed=0.02**2, user=0.3**2, rest=0.5**2), np.random.default_rng(1)
    effect = smallest_detectable(parts, 6, 800)
    found = 0
    for _ in range(400):
        table = effect + rng.normal(0, 0.02, (6, 1)) + rng.normal(0, 0.3, (1, 800)) + rng.normal(0, 0.5, (6, 800))
        found += interval(table).p < 0.05
    assert 0.75 <= found / 400 <= 0.93  # above .8 where the mixed model has more than 5 degrees of freedom


def test_more_seeds_see_less_until_the_users_are_too_few():
    parts = Components(seed=0.02**2, user=0.1**2, rest=0.3**2)
    n = seeds_needed(parts, 1000, 0.02)
    assert smallest_detectable(parts, n, 1000) <= 0.02 < smallest_detectable(parts, n - 1, 1000)
    assert seeds_needed(Components(0.02**2, 10.0, 0.0), 100, 0.02) is None


def test_over_splits_the_detectable_effect_is_found_four_times_in_five():
    """Three splits and more: a t test over their estimates, with their own degrees of freedom."""
    rng, sd, n = np.random.default_rng(3), 0.02, 4
    effect = detectable_by(sd / math.sqrt(n), n)
    found = [stats.ttest_1samp(rng.normal(effect, sd, n), 0).pvalue < 0.05 for _ in range(1000)]
    assert 0.76 <= np.mean(found) <= 0.84
    more = splits_needed(sd, 0.02, None, 2, 0.0)
    assert detectable_over_splits(sd, more, None, 2, 0.0) <= 0.02 < detectable_over_splits(sd, more - 1, None, 2, 0.0)
    assert detectable_by(sd / math.sqrt(more), more) == detectable_over_splits(sd, more, None, 2, 0.0)
    assert splits_needed(2.0, 0.02, None, 2, 0.0) is None


def test_what_a_seed_does_in_every_split_does_not_shrink_with_the_splits():
    """Of (seeds, splits): the effect named is found four times in five, and no number of splits goes below what the seeds leave."""
    rng, n_seeds, n_splits, of_seed = np.random.default_rng(6), 4, 3, 0.02
    crossed = Components(of_seed**2, 0.0, 0.005**2)
    effect = detectable_over_splits(0.0025, n_splits, crossed, n_seeds, 0.0)

    def found() -> bool:
        seeds = rng.normal(0, of_seed, (n_seeds, 1))
        tables = [1 + effect + seeds + rng.normal(0, 0.005, (n_seeds, 1)) + rng.normal(0, 0.01, (n_seeds, 40)) for _ in range(n_splits)]
        return over_splits([contrast(table, np.ones_like(table)) for table in tables]).difference.p < 0.05

    assert 0.74 <= np.mean([found() for _ in range(500)]) <= 0.88
    assert detectable_over_splits(0.0025, 200, crossed, n_seeds, 0.0) > 0.9 * effect
    assert splits_needed(0.0025, 0.5 * effect, crossed, n_seeds, 0.0) is None
    assert seeds_needed_over_splits(crossed, n_splits, 0.5 * effect, 0.0) > n_seeds
    assert splits_needed(0.0025, 0.02, None, n_seeds, 0.02**2) is None  # users alone
    assert seeds_needed_over_splits(crossed, n_splits, 0.02, 0.02**2) is None


def test_no_number_of_seeds_is_named_of_which_nothing_would_be_claimed():
    assert seeds_needed(Components(1e-9, 1e-9, 1e-9), 1000, 0.02) == 3


def test_one_seed_sees_nothing_beyond_itself():
    assert smallest_detectable(Components(1, 1, 1), 1, 100) == math.inf


def test_an_effect_must_be_positive():
    with pytest.raises(ValueError, match="effect must be positive"):
        seeds_needed(Components(1, 1, 1), 100, 0)
