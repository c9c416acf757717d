from dataclasses import replace

import numpy as np
import pytest

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.controls import CONTROLS, STRATA, control_targets
from llmkt_ray.embeddings.targets import Targets
from llmkt_ray.errors import EmbeddingError

ARMS = [arm for arm in CONTROLS if arm != "treated"]


@pytest.fixture
def targets(data: PreparedData) -> Targets:
    rng = np.random.default_rng(0)
    mixing = np.array([[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 2.0]])
    matrix = (rng.standard_normal((data.n_users, 3)) @ mixing + [0.0, 0.5, 3.0]).astype(np.float32)
    present = np.ones(data.n_users, np.bool_)
    present[[2, 9, 30]] = False
    matrix[~present] = 0
    return Targets("k", matrix, present, data.user_tokens)


def test_treated_is_what_it_was(targets: Targets, data: PreparedData) -> None:
    np.testing.assert_array_equal(control_targets("treated", targets, data, 1).matrix, targets.matrix)


@pytest.mark.parametrize("arm", ARMS)
def test_pure_seeded_masked(arm: str, targets: Targets, data: PreparedData) -> None:
    before = targets.matrix.copy()
    first, again, other = (control_targets(arm, targets, data, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(targets.matrix, before)
    np.testing.assert_array_equal(first.matrix, again.matrix)
    assert (arm == "constant") == np.array_equal(first.matrix, other.matrix)
    np.testing.assert_array_equal(first.present, targets.present)
    assert not first.matrix[~targets.present].any()
    assert first.matrix.dtype == np.float32


@pytest.mark.parametrize("arm", ["shuffled", "shuffled_strata"])
def test_shuffles_are_derangements_of_the_present_users(arm: str, targets: Targets, data: PreparedData) -> None:
    for seed in range(20):
        shuffled = control_targets(arm, targets, data, seed).matrix[targets.present]
        real = targets.matrix[targets.present]
        assert not (shuffled == real).all(axis=1).any()
        assert sorted(map(tuple, shuffled.tolist())) == sorted(map(tuple, real.tolist()))


def test_shuffle_reaches_every_user(targets: Targets, data: PreparedData) -> None:
    """No structure is left: over seeds, user 0 gets the targets of many others."""
    givers = {tuple(control_targets("shuffled", targets, data, seed).matrix[0]) for seed in range(60)}
    assert len(givers) > 15


def test_strata_keep_activity_and_shuffled_does_not(targets: Targets, data: PreparedData) -> None:
    rows = np.bincount(data.train_full.user, minlength=data.n_users).astype(np.float64)
    marked = replace(targets, matrix=np.where(targets.present, rows, 0).astype(np.float32)[:, None])
    inside = control_targets("shuffled_strata", marked, data, 3).matrix[:, 0]
    across = control_targets("shuffled", marked, data, 3).matrix[:, 0]
    spread = rows[targets.present].max() - rows[targets.present].min()
    assert np.abs(inside - rows)[targets.present].mean() < spread / STRATA * 2
    assert np.abs(across - rows)[targets.present].mean() > np.abs(inside - rows)[targets.present].mean() * 2


def test_gaussian_has_mean_and_covariance_of_the_targets(targets: Targets, data: PreparedData) -> None:
    real = targets.matrix[targets.present]
    drawn = np.concatenate([control_targets("gaussian", targets, data, seed).matrix[targets.present] for seed in range(300)])
    np.testing.assert_allclose(drawn.mean(axis=0), real.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn, rowvar=False), np.cov(real, rowvar=False, bias=True), atol=0.15)


def test_gaussian_of_one_dimension(targets: Targets, data: PreparedData) -> None:
    narrow = replace(targets, matrix=targets.matrix[:, :1])
    assert control_targets("gaussian", narrow, data, 1).matrix.shape == (data.n_users, 1)


def test_constant_is_the_mean(targets: Targets, data: PreparedData) -> None:
    matrix = control_targets("constant", targets, data, 1).matrix[targets.present]
    np.testing.assert_allclose(matrix, np.broadcast_to(targets.matrix[targets.present].mean(axis=0), matrix.shape), rtol=1e-5)


def test_refused(targets: Targets, data: PreparedData) -> None:
    with pytest.raises(EmbeddingError, match="control of targets 'shufled' is not known; did you mean 'shuffled'"):
        control_targets("shufled", targets, data, 1)
    with pytest.raises(EmbeddingError, match="another order"):
        control_targets("shuffled", replace(targets, user_tokens=targets.user_tokens[::-1]), data, 1)
    alone = replace(targets, present=np.arange(data.n_users) == 1)
    with pytest.raises(EmbeddingError, match="at least 2 users with a profile, but 1 have one"):
        control_targets("shuffled", alone, data, 1)
