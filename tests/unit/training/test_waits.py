"""Training steps never wait for a value of a tensor: on a GPU each such read stops the queue of work (no hidden synchronisation)."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from llmkt_ray.training.layers import probe_layers, resolve_layers
from llmkt_ray.training.loop import TrainingLoop
from llmkt_ray.training.spec import TrialArtifacts
from llmkt_ray.training.trial import run_trial

from .conftest import HYPERPARAMETERS, make_spec, make_targets

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


@pytest.fixture
def epochs(monkeypatch):
    """What each epoch that is trained reads."""
    original, seen = TrainingLoop._train, []

    def train(self, epoch):
        with Reads() as reads:
            original(self, epoch)
        seen.append(reads.seen)

    monkeypatch.setattr(TrainingLoop, "_train", train)
    return seen


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        *product(("BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN"), ("mse", "rmse", "cosine")),
        ("DeepFM", "mse"),
        ("SASRec", "mse"),
        ("GRU4Rec", "mse"),
    ],
)
def test_an_epoch_reads_one_value_at_the_most_however_many_steps_it_has(data, epochs, model, loss):
    """Pairwise, pointwise, autoencoder, graph, context-aware and sequential models alike."""
    split = replace(data, notes={"split": {"kind": "time"}})
    sizes = {"hyperparameters": HYPERPARAMETERS.get(model, {"MAX_ITEM_LIST_LENGTH": 5} if model in ("SASRec", "GRU4Rec") else {})}
    spec = make_spec(split, model, "treated", epochs=2, loss=loss, balance="none", **sizes)
    tap = resolve_layers((spec.layer,), probe_layers(model, split, spec.hyperparameters), model)[0]
    artifacts = TrialArtifacts(split, make_targets(split, tap.width))
    steps = [run_trial(spec.model_copy(update={"batch_size": size}), artifacts).facts["batches_per_epoch"] for size in (256, 16)]
    assert steps[1] > steps[0] >= 1
    # Once an epoch the loss that is computed on the user table itself verifies that this is what the hook reads.
    assert all(seen <= Counter(equal=1) for seen in epochs[::2]), "phase 1"
    assert not any(epochs[1::2]), "phase 2"


@pytest.mark.parametrize("loss", ["infonce", "relational", "cka"])
def test_losses_that_compare_users_read_how_many_of_them_a_batch_holds_and_nothing_in_phase_2(run, epochs, loss):
    """Said in docs/performance.md: the sizes of what they compute depend on it."""
    steps = run("BPR", "treated", epochs=2, batch_size=64, loss=loss).facts["batches_per_epoch"]
    assert set(epochs[0]) <= {"_unique2", "bincount", "nonzero", "_local_scalar_dense", "equal", "masked_select"}
    assert epochs[0]["_unique2"] == steps > 1
    assert not epochs[1]


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
