import numpy as np
import pytest
from scipy.stats import chi2_contingency

from llmkt_ray.errors import TrainingError
from llmkt_ray.training import negatives as module
from llmkt_ray.training.bridge.models import build_model
from llmkt_ray.training.negatives import OtherItems, UniformNegatives


def brute_force_used(users, items, pairs):
    return np.asarray([(u, i) in pairs for u, i in zip(users.tolist(), items.tolist(), strict=True)])


@pytest.mark.parametrize("bits_at_most", [1 << 31, 0], ids=["bits", "sorted"])
def test_membership_is_that_of_the_train_positives(monkeypatch, bits_at_most):
    monkeypatch.setattr(module, "_BITS_AT_MOST", bits_at_most)
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 13, 80), rng.integers(0, 31, 80)
    sampler = UniformNegatives(users, items, 13, 31)
    all_users, all_items = (grid.ravel() for grid in np.meshgrid(np.arange(13), np.arange(31), indexing="ij"))
    np.testing.assert_array_equal(
        sampler.used(all_users, all_items), brute_force_used(all_users, all_items, set(zip(users.tolist(), items.tolist(), strict=True)))
    )


@pytest.mark.parametrize("bits_at_most", [1 << 31, 0], ids=["bits", "sorted"])
def test_draws_are_uniform_over_what_the_user_has_not_liked(monkeypatch, bits_at_most):
    monkeypatch.setattr(module, "_BITS_AT_MOST", bits_at_most)
    users, items = np.asarray([0, 0, 0, 1]), np.asarray([0, 3, 7, 5])
    sampler = UniformNegatives(users, items, 2, 10)
    rows = np.repeat([0, 1], 30_000)
    drawn = sampler.draw(rows, np.random.default_rng(1))
    for user, liked in ((0, {0, 3, 7}), (1, {5})):
        counts = np.bincount(drawn[rows == user], minlength=10)
        allowed = [item for item in range(10) if item not in liked]
        assert counts[list(liked)].sum() == 0
        expected = 30_000 / len(allowed)
        # chi-square with len(allowed) - 1 degrees of freedom: 30 is far beyond its 99.9 % point
        assert ((counts[allowed] - expected) ** 2 / expected).sum() < 30


def test_draws_have_the_distribution_of_recboles_sampler(data):
    """Both draw for the same users: RecBole's own sampler in its train phase, and ours."""
    from recbole.sampler import Sampler  # after the bridge has installed its shims

    dataset = build_model("BPR", data, hyperparameters={}, seed=0).dataset
    theirs = Sampler("train", dataset, "uniform", 1.0).set_phase("train")
    positives = data.train.positives()
    ours = UniformNegatives(positives.user, positives.item, data.n_users, data.n_items)
    users = np.repeat([0, 7, 33], 20_000)
    np.random.seed(1)  # noqa: NPY002 - RecBole's sampler draws from the global generator
    drawn = [theirs.sample_by_user_ids(users + 1, None, 1).numpy() - 1, ours.draw(users, np.random.default_rng(1))]
    for user in (0, 7, 33):
        counts = np.stack([np.bincount(items[users == user], minlength=data.n_items) for items in drawn])
        np.testing.assert_array_equal(counts[0] > 0, counts[1] > 0)
        assert chi2_contingency(counts[:, counts[0] > 0]).pvalue > 0.001


def test_draws_of_sequential_models_have_the_distribution_of_recboles_sampler(data):
    """RecBole's is repeatable there: all items but the row's own, what the user took before included."""
    from recbole.sampler import RepeatableSampler

    dataset = build_model("BPR", data, hyperparameters={}, seed=0).dataset
    theirs = RepeatableSampler("train", dataset, "uniform", 1.0).set_phase("train")
    items = np.repeat([0, 41, data.n_items - 1], 20_000)
    np.random.seed(1)  # noqa: NPY002 - RecBole's sampler draws from the global generator
    drawn = [theirs.sample_by_user_ids(items + 1, items + 1, 1).numpy() - 1, OtherItems(data.n_items).draw(items, np.random.default_rng(1))]
    for item in (0, 41, data.n_items - 1):
        counts = np.stack([np.bincount(made[items == item], minlength=data.n_items) for made in drawn])
        assert (counts[:, item] == 0).all()
        others = np.arange(data.n_items) != item
        assert (counts[:, others] > 0).all()
        assert chi2_contingency(counts[:, others]).pvalue > 0.001
    with pytest.raises(TrainingError, match="one item only"):
        OtherItems(1)


def test_the_generator_alone_decides():
    sampler = UniformNegatives(np.asarray([0, 1]), np.asarray([1, 2]), 2, 50)
    rows = np.repeat([0, 1], 100)
    first, again, other = (sampler.draw(rows, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_user_who_likes_everything_is_refused():
    with pytest.raises(TrainingError, match="have all 3 items as train positives"):
        UniformNegatives(np.asarray([0, 1, 1, 1]), np.asarray([0, 0, 1, 2]), 2, 3)
