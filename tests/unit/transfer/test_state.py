import random

import numpy as np
import torch
from torch import nn

from llmkt_ray.transfer.state import counters, random_state_kept, set_counters, untouched


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.update, self.rate, self.flag, self.name = 3, 0.5, True, "x"
        self.inner = nn.Dropout(0.25)
        self.norm = nn.BatchNorm1d(2)
        self.cache = None

    def forward(self, x):
        self.update += 1
        self.cache = x
        self.added = 1
        return self.norm(x)


def test_counters_are_the_numbers_of_all_modules_and_come_back():
    model = Counting()
    kept = counters(model)
    assert kept["update"] == 3
    assert kept["rate"] == 0.5
    assert kept["inner.p"] == 0.25
    assert "flag" not in kept
    assert "training" not in kept
    model(torch.rand(4, 2))
    assert model.update == 4
    set_counters(model, kept)
    assert model.update == 3


def test_untouched_brings_back_attributes_buffers_mode_and_random_state():
    model = Counting()
    running = model.norm.running_mean.clone()
    state = torch.get_rng_state()
    with untouched(model, seed=1):
        model.eval()
        model.train()
        model(torch.rand(4, 2))
        model.eval()
        assert model.update == 4
    assert (model.update, model.cache, model.training) == (3, None, True)
    assert "added" not in vars(model)
    assert torch.equal(model.norm.running_mean, running)
    assert int(model.norm.num_batches_tracked) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_random_state_is_kept_even_after_an_error_and_starts_from_the_seed_inside():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 - what RecBole draws from
    drawn = []
    for _ in range(2):
        try:
            with random_state_kept(7):
                drawn.append((float(torch.rand(())), random.random(), np.random.rand()))  # noqa: NPY002
                raise ValueError
        except ValueError:
            pass
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
