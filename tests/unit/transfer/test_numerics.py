"""Transfer losses at the edges: equal rows, models that compute in double precision, state outside parameters."""

import numpy as np
import pytest
import torch
from torch import nn

from llmkt_ray.transfer.loss import LOSSES, LossManager
from llmkt_ray.transfer.state import ModelState, untouched


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-6])
def test_the_gradient_is_finite_where_all_rows_are_equal(name, spread):
    generator = torch.Generator().manual_seed(0)
    h = (torch.full((6, 4), 0.3) + spread * torch.randn(6, 4, generator=generator)).requires_grad_(True)
    t = torch.randn(6, 4, generator=generator)
    loss = LOSSES[name].function(h, t, torch.ones(6))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_of_zeros_has_no_giant_gradient(name):
    """A ReLU whose units are all off for a user: one such row in a layer of NeuMF made a gradient ratio of 500 one of 7e11."""
    generator = torch.Generator().manual_seed(0)
    h, t = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    h[2] = 0.0
    h.requires_grad_(True)
    LOSSES[name].function(h, t, torch.ones(6)).backward()
    lengths = h.grad.norm(dim=1)
    assert lengths[2] <= 10 * lengths[[0, 1, 3, 4, 5]].max()


def test_a_model_loss_in_double_precision_is_combined_as_it_is():
    manager = LossManager("mse", torch.zeros(3, 2), torch.ones(3))
    model_loss = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    h = torch.ones(3, 2, requires_grad=True)
    total = manager.combine(model_loss, manager.transfer(h, torch.arange(3)), 0.25)
    total.backward()
    assert total.dtype == torch.float64
    assert float(total) == pytest.approx(0.75 * 2 + 0.25 * 1)
    assert h.grad.dtype == torch.float32


class Remembering(nn.Module):
    """Writes to tensors and arrays that are plain attributes, of its own and of a submodule."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.inner.seen = torch.zeros(2, dtype=torch.int64)
        self.order = np.arange(4)
        self.names = np.asarray(["a", "b"])
        self.table = torch.arange(1000)
        self.latest = None

    def forward(self, x):
        self.inner.seen += 1
        self.order[:] = self.order[::-1].copy()
        self.latest = x.sum(0)
        return self.inner(x)


def test_untouched_brings_back_the_contents_of_tensors_and_arrays():
    model = Remembering()
    seen, order = model.inner.seen, model.order
    with untouched(model):
        model(torch.rand(3, 2))
        assert seen.tolist() == [1, 1]
    assert model.inner.seen is seen
    assert model.order is order
    assert (seen.tolist(), order.tolist(), model.latest) == ([0, 0], [0, 1, 2, 3], None)


def test_model_state_brings_back_what_was_written_and_leaves_the_rest_alone():
    model = Remembering()
    state = ModelState(model)
    model(torch.ones(3, 2))
    kept = state.copy()
    assert set(kept["attributes"]) == {"inner.seen", "order", "latest"}
    model(torch.zeros(3, 2))
    assert model.inner.seen.tolist() == [2, 2]
    state.load(kept)
    assert model.inner.seen.tolist() == [1, 1]
    assert model.order.tolist() == [3, 2, 1, 0]
    assert model.latest.tolist() == [3.0, 3.0]
    fresh = Remembering()
    ModelState(fresh).load(kept)
    again = ModelState(fresh)
    fresh(torch.zeros(3, 2))
    assert fresh.inner.seen.tolist() == [2, 2]
    assert set(again.copy()["attributes"]) == {"inner.seen", "order", "latest"}
