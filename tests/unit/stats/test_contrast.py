import math

import numpy as np
import pytest
from scipy import stats

from llmkt_ray.stats.contrast import contrast, on_shared_seeds, over_splits


def _arms(rng, n_seeds=4, n_users=500, gain=0.05):
    users, seeds = rng.gamma(2, 0.1, (1, n_users)), rng.normal(1, 0.02, (n_seeds, 1))
    control = users * seeds + rng.normal(0, 0.02, (n_seeds, n_users))
    return control * (1 + gain) + rng.normal(0, 0.02, (n_seeds, n_users)), control


def test_relative_effects_are_those_planted():
    found = contrast(*_arms(np.random.default_rng(1)))
    assert found.relative.low < 0.05 < found.relative.high
    assert found.relative.estimate == pytest.approx(found.mean_arm / found.mean_control - 1)


def test_the_relative_interval_covers_the_planted_ratio():
    rng = np.random.default_rng(2)
    covered = sum((r := contrast(*_arms(rng, 3, 200)).relative).low <= 0.05 <= r.high for _ in range(300))
    assert covered / 300 > 0.9


def test_pairing_uses_the_correlation_of_users():
    """Users differ a thousand times more than the arms: only a paired contrast can see the difference."""
    rng = np.random.default_rng(3)
    users = rng.normal(0, 10, (1, 300))
    control = users + rng.normal(0, 0.01, (3, 300))
    arm = control + 0.05 + rng.normal(0, 0.01, (3, 300))
    assert contrast(arm, control).difference.p < 0.001
    assert stats.ttest_ind(arm.ravel(), control.ravel()).pvalue > 0.5


@pytest.mark.parametrize(("shared", "low", "high"), [(1.0, 0.8, 1.0), (0.0, -0.3, 0.3)])
def test_the_correlation_of_shared_seeds_is_estimated(shared, low, high):
    """What pairing seeds is worth: arms that start from equal weights go up and down together."""
    rng = np.random.default_rng(6)
    users, of_seed = rng.gamma(2, 0.1, (1, 50)), rng.normal(0, 0.02, (200, 1))
    arm, control = (users + shared * of_seed + rng.normal(0, 0.005 if shared else 0.02, (200, 1)) for _ in range(2))
    found = contrast(arm, control)
    assert low < found.seed_correlation <= high
    assert found.seed_correlation == pytest.approx(np.corrcoef(arm.mean(axis=1), control.mean(axis=1))[0, 1])
    assert math.isnan(contrast(arm[:2], control[:2]).seed_correlation)


def test_a_control_of_zero_has_no_relative_effect():
    assert contrast(np.ones((3, 5)) * np.arange(5), np.zeros((3, 5))).relative is None


def test_unequal_seeds_are_refused():
    with pytest.raises(ValueError, match="equal seeds and users"):
        contrast(np.ones((3, 5)), np.ones((2, 5)))


def test_one_split_is_said_and_three_speak_of_new_ones():
    rng = np.random.default_rng(4)
    arms = [_arms(rng) for _ in range(3)]
    parts = [contrast(*pair, users=np.arange(1000 * at, 1000 * at + pair[0].shape[1])) for at, pair in enumerate(arms)]
    assert parts[0].conditions == ("conditional on one split",)
    assert over_splits(parts[:2]).conditions == ("conditional on these 2 splits",)
    pooled = over_splits(parts)
    assert pooled.conditions == ()
    theirs = stats.ttest_1samp([p.difference.estimate for p in parts], 0)
    assert (pooled.difference.p, pooled.difference.df) == pytest.approx((theirs.pvalue, 2))


@pytest.mark.parametrize(("seeds", "few"), [((1, 1, 1), True), ((2, 2, 2), True), ((3, 3, 3), False), ((3, 3), False)])
def test_several_splits_do_not_make_up_for_few_seeds(seeds, few):
    """All splits share the seeds: with fewer than three of them nothing is said of others."""
    rng = np.random.default_rng(8)
    pooled = over_splits([contrast(*_arms(rng, n)) for n in seeds])
    assert pooled.difference.n_seeds == min(seeds)
    assert ("conditional on these seeds" in pooled.conditions) == few


def test_a_seed_that_is_missing_in_one_split_counts_in_none():
    """Without its table of seeds and splits an interval over splits is too short: one lost trial would make it so."""
    assert on_shared_seeds({0: {0, 1, 2, 3}, 1: {3, 1, 0}, 2: {0, 1, 3}}) == {0: [0, 1, 3], 1: [0, 1, 3], 2: [0, 1, 3]}
    assert on_shared_seeds({0: {0, 1}, 1: {2}, 2: set()}) == {0: [0, 1]}, "no seed in common: the split with the fewest goes"
    assert on_shared_seeds({}) == {}
    rng = np.random.default_rng(9)
    of_splits = [contrast(*_arms(rng), seeds=seeds) for seeds in ((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 4))]
    with pytest.raises(ValueError, match=r"need the same seeds in each, but got .*\[0, 1, 2, 4\]"):
        over_splits(of_splits)


def test_arms_that_are_equal_in_every_split_have_an_interval_that_can_be_written():
    table = np.ones((3, 20))
    found = over_splits([contrast(table, table) for _ in range(3)]).difference
    assert (found.estimate, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert np.isfinite(found.df)


@pytest.mark.parametrize(("splits", "seeds"), [(2, 9), (3, 3), (5, 3)])
def test_a_seeds_effect_that_all_splits_share_is_counted(splits, seeds):
    """Splits that agree say nothing of it. An interval between splits alone misses in 13 to 72 % of these studies."""
    rng = np.random.default_rng(11)

    def study():
        of_seed = rng.normal(0, 0.02, (seeds, 1))
        tables = [1 + of_seed + rng.normal(0, 0.05, (seeds, 60)) for _ in range(splits)]
        return over_splits([contrast(table, np.ones_like(table)) for table in tables])

    found = [study() for _ in range(300)]
    missed = np.mean([not c.difference.low <= 0 <= c.difference.high for c in found])
    assert missed < 0.1
    assert all((c.difference.p < 0.05) == (not c.difference.low <= 0 <= c.difference.high) for c in found)
    assert np.mean([not c.relative.low <= 0 <= c.relative.high for c in found]) < 0.1
    if splits >= 3:
        assert {c.difference.method for c in found} >= {"seeds and splits"}
        assert np.sqrt(np.mean([c.over_splits.seed for c in found])) == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(("splits", "seeds"), [(3, 2), (5, 3), (10, 5)])
def test_a_users_effect_that_splits_share_is_counted(splits, seeds):
    """Users found again by their ids, whatever their places. An interval between splits alone misses in 28 to 61 % of these studies."""
    rng = np.random.default_rng(12)

    def study():
        of_user, parts = rng.normal(0, 0.2, 80), []
        for _ in range(splits):
            users = rng.permutation(80)[:70]
            table = 1 + of_user[users] + rng.normal(0, 0.005) + rng.normal(0, 0.05, (seeds, 70))
            parts.append(contrast(table, np.ones_like(table), users=users))
        return over_splits(parts), stats.ttest_1samp([p.difference.estimate for p in parts], 0).pvalue

    found = [study() for _ in range(300)]
    assert np.mean([c.difference.p < 0.05 for c, _ in found]) < 0.09
    assert np.mean([alone < 0.05 for _, alone in found]) > 0.2
    assert np.mean([c.shared_users for c, _ in found]) == pytest.approx(0.2**2 / 80, rel=0.1)


def test_other_users_in_every_split_share_nothing():
    rng = np.random.default_rng(13)
    tables = [1 + rng.normal(0, 0.2, (2, 50)) for _ in range(3)]
    apart = over_splits([contrast(t, np.ones_like(t), users=np.arange(50) + 50 * at) for at, t in enumerate(tables)])
    theirs = stats.ttest_1samp([t.mean() - 1 for t in tables], 0).confidence_interval()
    assert apart.shared_users == 0
    assert (apart.difference.low, apart.difference.high) == pytest.approx((theirs.low, theirs.high))
    with pytest.raises(ValueError, match="50 users need as many ids"):
        contrast(tables[0], tables[1], users=np.arange(49))


def test_two_seeds_are_conditional_on_them():
    assert contrast(*_arms(np.random.default_rng(5), 2)).conditions == ("conditional on these seeds", "conditional on one split")


def test_where_less_is_better_a_decrease_is_positive():
    """LogLoss: the same numbers as the other direction's with their signs turned, levels as they are."""
    rng = np.random.default_rng(5)
    control = rng.gamma(2.0, 0.2, (4, 60))
    arm = control * 0.95 + rng.normal(0, 0.01, (4, 60))
    more, less = contrast(arm, control), contrast(arm, control, lower_is_better=True)
    assert less.relative is not None
    assert more.relative is not None
    assert less.relative.low > 0.03
    assert less.relative.high < 0.07
    for one, other in ((less.difference, more.difference), (less.relative, more.relative)):
        assert (one.estimate, one.low, one.high, one.p) == pytest.approx((-other.estimate, -other.high, -other.low, other.p))
    assert (less.mean_arm, less.mean_control) == (more.mean_arm, more.mean_control)
