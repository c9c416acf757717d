import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.metrics import mean_squared_error
from sklearn.metrics.pairwise import cosine_similarity

from llmkt_ray.errors import LayerError, TrainingError
from llmkt_ray.transfer.loss import LOSSES, RMSE_EPS, TAU, LossManager, check_widths, one_row_each, row_weights, transfer_loss, user_weights


def drawn(rows=12, width=5, dims=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    t = torch.randn(rows, dims or width, generator=generator, dtype=torch.float64)
    weight = torch.rand(rows, generator=generator, dtype=torch.float64) * 2
    return h, t, weight


def reference(name, h, t, w):
    """Each loss once more in numpy, scikit-learn and scipy."""
    h, t, w = h.numpy(), t.numpy(), w.numpy()
    n = len(h)
    if name == "mse":
        return sum(w * mean_squared_error(t.T, h.T, multioutput="raw_values")) / n
    if name == "rmse":
        return math.sqrt(reference("mse", *map(torch.from_numpy, (h, t, w))) + RMSE_EPS)
    if name == "rmse_plain":
        return math.sqrt(reference("mse", *map(torch.from_numpy, (h, t, w))))
    if name == "cosine":
        return sum(w * (1 - np.diag(cosine_similarity(h, t)))) / n
    if name == "infonce":
        logits = cosine_similarity(h, t) / TAU
        return sum(w * (logsumexp(logits, axis=1) - np.diag(logits))) / n
    if name == "relational":
        difference = (cosine_similarity(h) - cosine_similarity(t)) ** 2
        total, norm = 0.0, 0.0
        for i in range(n):
            for j in range(n):
                if i != j:
                    total, norm = total + w[i] * w[j] * difference[i, j], norm + w[i] * w[j]
        return total / norm
    # Linear CKA through the centred Gram matrices (Kornblith et al. 2019, equation 3), weighted by repeating rows.
    p = w / w.sum()
    centring = np.eye(n) - np.outer(np.ones(n), p)
    scale = np.diag(np.sqrt(p))
    k = scale @ centring @ h @ h.T @ centring.T @ scale
    m = scale @ centring @ t @ t.T @ centring.T @ scale
    return 1 - np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_each_loss_equals_an_independent_computation(name, seed):
    h, t, w = drawn(dims=3 if not LOSSES[name].equal_width else None, seed=seed)
    assert float(LOSSES[name].function(h, t, w)) == pytest.approx(reference(name, h, t, w), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name):
    h, t, w = drawn(rows=5, width=3)
    h.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name].function(x, t, w), (h,))


def test_the_gradient_of_mse_by_hand():
    h, t, w = drawn()
    h.requires_grad_(True)
    LOSSES["mse"].function(h, t, w).backward()
    by_hand = 2 * w.unsqueeze(1) * (h.detach() - t) / (h.shape[1] * len(h))
    torch.testing.assert_close(h.grad, by_hand)


def test_unweighted_mse_is_torchs():
    h, t, _ = drawn()
    torch.testing.assert_close(LOSSES["mse"].function(h, t, torch.ones(len(h), dtype=h.dtype)), torch.nn.functional.mse_loss(h, t))


def test_weighted_cka_equals_cka_of_repeated_rows():
    h, t, _ = drawn(dims=4)
    counts = torch.tensor([1, 2, 3, 1, 1, 2, 4, 1, 1, 1, 2, 1])
    repeated = LOSSES["cka"].function(
        h.repeat_interleave(counts, 0), t.repeat_interleave(counts, 0), torch.ones(int(counts.sum()), dtype=h.dtype)
    )
    torch.testing.assert_close(LOSSES["cka"].function(h, t, counts.double()), repeated)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"rmse_plain"}))
def test_an_exact_match_has_a_finite_gradient_and_is_the_minimum_but_for_infonce(name):
    _, t, w = drawn()
    h = t.clone().requires_grad_(True)
    loss = LOSSES[name].function(h, t, w)
    loss.backward()
    assert torch.isfinite(h.grad).all()
    least = {"rmse": math.sqrt(RMSE_EPS), "infonce": reference("infonce", t, t, w)}.get(name, 0.0)
    assert float(loss.detach()) == pytest.approx(least, abs=1e-9)


def test_trap_10_plain_rmse_is_nan_at_an_exact_match_and_ours_is_not():
    h = torch.ones(4, 3, requires_grad=True)
    LOSSES["rmse_plain"].function(h, torch.ones(4, 3), torch.ones(4)).backward()
    assert torch.isnan(h.grad).all()
    h.grad = None
    LOSSES["rmse"].function(h, torch.ones(4, 3), torch.ones(4)).backward()
    assert torch.equal(h.grad, torch.zeros(4, 3))


def test_trap_10_the_gradient_of_mse_shrinks_with_the_error_while_that_of_rmse_does_not():
    norms = {}
    for name in ("mse", "rmse"):
        for error in (1.0, 0.1):
            h = torch.full((8, 4), error, requires_grad=True)
            LOSSES[name].function(h, torch.zeros(8, 4), torch.ones(8)).backward()
            norms[name, error] = float(h.grad.norm())
    assert norms["mse", 0.1] == pytest.approx(0.1 * norms["mse", 1.0])
    assert norms["rmse", 0.1] == pytest.approx(norms["rmse", 1.0], rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=2, max_size=12), absent=st.sets(st.integers(0, 11)), batch=st.integers(1, 9))
def test_trap_11_every_user_with_a_profile_weighs_the_same_over_an_epoch(counts, absent, batch):
    rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    present = torch.tensor([u not in absent for u in range(len(counts))])
    if not any(c > 0 and bool(p) for c, p in zip(counts, present, strict=True)):
        with pytest.raises(TrainingError, match="nothing to transfer"):
            user_weights(rows, len(counts), present)
        return
    weight = user_weights(rows, len(counts), present)
    # Mean over the epoch's rows is 1, and every user's rows together weigh the same.
    assert float(weight[rows].mean()) == pytest.approx(1, rel=1e-5)
    per_user = torch.bincount(rows, weights=weight[rows].double(), minlength=len(counts))
    taking_part = [u for u, c in enumerate(counts) if c > 0 and bool(present[u])]
    assert np.allclose(per_user[taking_part], float(per_user[taking_part[0]]), rtol=1e-5)
    assert all(float(weight[u]) == 0 for u in range(len(counts)) if u not in taking_part)
    # In whole batches of any size, the sum of batch losses is the plain mean over users.
    t = torch.zeros(len(counts), 2)
    h = torch.arange(len(counts), dtype=torch.float32).unsqueeze(1).repeat(1, 2)
    manager = LossManager("mse", t, weight)
    shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    total = sum(float(manager.transfer(h[part], part)) * len(part) for part in shuffled.split(batch)) / len(rows)
    assert total == pytest.approx(float(np.mean([u**2 for u in taking_part])), rel=1e-4)


def test_the_published_weights_are_equal_for_rows_and_grow_with_activity():
    """What `compat: upstream_2024` does on purpose, and trap 11 is: a user's weight in the loss is their number of rows."""
    rows, present = torch.tensor([0, 0, 0, 0, 1, 2, 2]), torch.tensor([True, True, False, True])
    weight = row_weights(rows, 4, present)
    assert weight[0] == weight[1] > 0
    assert float(weight[rows].mean()) == pytest.approx(1)
    assert weight[2:].tolist() == [0, 0], "no profile, no row"
    of_users = torch.bincount(rows, weights=weight[rows].double())
    assert float(of_users[0] / of_users[1]) == pytest.approx(4)
    ours = torch.bincount(rows, weights=user_weights(rows, 4, present)[rows].double())
    assert float(ours[0] / ours[1]) == pytest.approx(1)
    with pytest.raises(TrainingError, match="nothing to transfer"):
        row_weights(rows, 4, torch.tensor([False, False, False, True]))


@settings(max_examples=30, deadline=None)
@given(users=st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_one_row_each_averages_rows_and_adds_weights(users):
    ids = torch.tensor(users)
    h = torch.arange(len(users) * 2, dtype=torch.float64).view(-1, 2)
    weight = torch.where(ids == 3, 0.0, 1.0 + ids.double())
    mean, distinct, total = one_row_each(h, ids, weight)
    assert distinct.tolist() == sorted(set(users) - {3})
    for row, user, share in zip(mean, distinct.tolist(), total.tolist(), strict=True):
        mine = [i for i, u in enumerate(users) if u == user]
        assert row.tolist() == pytest.approx(h[mine].mean(0).tolist())
        assert share == pytest.approx(len(mine) * (1.0 + user) * len(distinct) / len(users))


def test_a_repeated_user_is_not_their_own_negative():
    targets = torch.eye(4, dtype=torch.float64)
    manager = LossManager("infonce", targets, torch.ones(4, dtype=torch.float64))
    once = manager.transfer(targets[[0, 1, 2]], torch.tensor([0, 1, 2]))
    twice = manager.transfer(targets[[0, 1, 2, 0, 1, 2]], torch.tensor([0, 1, 2, 0, 1, 2]))
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("name", LOSSES)
def test_users_without_a_profile_change_nothing(name):
    h, t, _ = drawn(rows=8)
    weights = torch.ones(8, dtype=torch.float64)
    weights[5:] = 0
    results = []
    for junk in (0.0, 9.0):
        other, table = h.clone(), t.clone()
        other[5:], table[5:] = junk + other[5:], junk
        manager = LossManager(name, table, weights)
        x = other.requires_grad_(True)
        loss = manager.transfer(x, torch.arange(8))
        loss.backward()
        assert float(x.grad[5:].abs().sum()) == 0
        results.append(float(loss.detach()))
    assert results[0] == pytest.approx(results[1], rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("who", [[0, 0], [3], [3, 3]])
def test_a_batch_with_nobody_to_compare_gives_a_finite_loss_and_gradient(name, who):
    weights = torch.ones(4)
    weights[3] = 0
    h = torch.randn(len(who), 3, requires_grad=True)
    loss = LossManager(name, torch.randn(4, 3), weights).transfer(h, torch.tensor(who))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(h.grad).all()


def test_the_target_never_receives_a_gradient():
    targets = torch.randn(4, 3, requires_grad=True)
    for name in LOSSES:
        h = torch.randn(4, 3, requires_grad=True)
        LossManager(name, targets, torch.ones(4)).transfer(h, torch.arange(4)).backward()
    assert targets.grad is None


def test_the_losses_are_combined_as_the_paper_writes_it():
    manager = LossManager("mse", torch.zeros(2, 2), torch.ones(2))
    model, transfer = torch.tensor(3.0, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    assert float(manager.combine(model, transfer, 0.3).detach()) == pytest.approx(0.7 * 3 + 0.3 * 5)
    manager.beta = 2.0
    assert float(manager.combine(model, transfer, 0.3).detach()) == pytest.approx(0.7 * 3 + 0.3 * 2 * 5)
    manager.combine(model, transfer, 1.0).backward()
    assert model.grad is None
    assert float(transfer.grad) == 2.0


def test_trap_01_different_widths_are_refused_unless_loss_or_projection_allows_them():
    with pytest.raises(LayerError, match=r"'user_embedding' is 64 wide and the target 2.*reduction.dims.*'student'"):
        check_widths("mse", "none", "user_embedding", 64, 2)
    check_widths("mse", "none", "user_embedding", 64, 64)
    check_widths("mse", "student", "user_embedding", 64, 2)
    check_widths("mse", "legacy_slice", "user_embedding", 64, 2)
    check_widths("relational", "none", "user_embedding", 64, 2)
    with pytest.raises(LayerError, match="has only 64"):
        check_widths("mse", "legacy_slice", "user_embedding", 64, 65)


def test_an_unknown_loss_offers_the_names():
    with pytest.raises(TrainingError, match="did you mean 'cosine'"):
        transfer_loss("cosin")
