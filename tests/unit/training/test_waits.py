"""Training steps never wait for a value of a tensor: on a GPU each such read stops the queue of work (no hidden synchronisation)."""

from collections import Counter

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from llmkt_ray.training.loop import TrainingLoop

READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim"}
"""Operations whose outcome, or its shape, Python or the device's memory has to know before it can go on."""


class Reads(TorchDispatchMode):
    """Counts these operations."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen.update([name] if name in READS else [])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", ["mse", "rmse", "cosine"])
@pytest.mark.parametrize("model", ["BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN"])
def test_an_epoch_reads_one_value_at_the_most_however_many_steps_it_has(run, monkeypatch, model, loss):
    original, epochs = TrainingLoop._train, []

    def train(self, epoch):
        with Reads() as reads:
            original(self, epoch)
        epochs.append(reads.seen)

    monkeypatch.setattr(TrainingLoop, "_train", train)
    steps = [run(model, "treated", epochs=2, batch_size=size, loss=loss).facts["batches_per_epoch"] for size in (256, 16)]
    assert steps[1] > steps[0] >= 1
    # Once an epoch the loss that is computed on the user table itself verifies that this is what the hook reads.
    assert all(seen <= Counter(equal=1) for seen in epochs[::2]), "phase 1"
    assert not any(epochs[1::2]), "phase 2"


def test_a_read_in_every_step_is_seen(run, monkeypatch):
    original = TrainingLoop._train

    def train(self, epoch):
        own = self._model.loss
        self._model.loss = lambda *given: own(*given) * (float(own(*given)) > -1)
        with Reads() as reads:
            original(self, epoch)
        assert reads.seen["_local_scalar_dense"] == self._batches.n_batches
        self._model.loss = own

    monkeypatch.setattr(TrainingLoop, "_train", train)
    run("MultiVAE", "alpha0", epochs=2, batch_size=16)
