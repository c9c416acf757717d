"""What a phase-1 epoch costs over the same epoch without transfer, and whether memory grows with epochs.

    python -m benchmarks.transfer.phase1_cost [--pairs 9] [--models BPR NeuMF ...] [--batch-size 2048] [--dataset ml-1m --path FOLDER]

Both arms run in one process, on one thread, alternating epoch by epoch from equal weights; the figure is the median of
the paired ratios of process CPU time. Target: at most 1.15. Memory: resident size after the last epoch minus that after a third of them.

`bare` is a third arm beside these two: the same weighted mse written plainly in PyTorch on what the same hook reads, with
nothing logged. It is what the method costs without any machinery of ours.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass

import psutil
import torch

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.split import prepare
from llmkt_ray.study import DatasetConfig, PositiveRule, ScheduleConfig
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.dataset import PADDING
from llmkt_ray.training.bridge.models import BuiltModel, build_model
from llmkt_ray.training.layers import model_taps, resolve_layers
from llmkt_ray.transfer.hook import HookManager
from llmkt_ray.transfer.loss import mse, user_weights
from llmkt_ray.transfer.manager import TransferManager, TransferSetup
from llmkt_ray.transfer.phases import PhasePlan
from llmkt_ray.transfer.weights import WeightsManager

TARGET = 1.15
BATCH_SIZES = {"MultiVAE": 128}
PLAN = PhasePlan(ScheduleConfig(kind="joint"), 10_000)


@dataclass
class Arm:
    """One model in training, with or without transfer."""

    model: BuiltModel
    batches: BatchSource
    transfer: TransferManager
    weights: WeightsManager
    layer: str

    def epoch_cpu_s(self, epoch: int) -> float:
        """Runs one epoch; returns its process CPU seconds."""
        self.weights.begin_epoch(epoch)
        self.model.module.train()
        torch.manual_seed(epoch)
        started = time.process_time()
        with self.transfer.epoch(epoch):
            for batch in self.batches.epoch(epoch):
                self.weights.optimizer.zero_grad(set_to_none=True)
                self.transfer.backward(self.model.loss(batch.interaction), batch.users)
                self.weights.optimizer.step()
        self.transfer.record()
        return time.process_time() - started


@dataclass
class BareArm(Arm):
    """The same transfer written plainly: what the method itself costs."""

    setup: TransferSetup

    def epoch_cpu_s(self, epoch: int) -> float:
        """Runs one epoch; returns its process CPU seconds."""
        setup, hook = self.setup, HookManager(self.model.module, self.setup.tap)
        self.weights.begin_epoch(epoch)
        self.model.module.train()
        torch.manual_seed(epoch)
        started = time.process_time()
        with hook:
            for batch in self.batches.epoch(epoch):
                self.weights.optimizer.zero_grad(set_to_none=True)
                loss_model = self.model.loss(batch.interaction)
                h, users = hook.take(batch.users, batch.lengths)
                loss_transfer = mse(h, setup.targets[users], setup.weights[users])
                ((1 - setup.alpha) * loss_model + setup.alpha * loss_transfer).backward()
                self.weights.optimizer.step()
        return time.process_time() - started


def make_arm(name: str, data: PreparedData, batch_size: int, loss: str | None, *, bare: bool = False) -> Arm:
    """Returns an arm; `loss` None: without transfer; `bare`: the transfer without our machinery."""
    model = build_model(name, data, hyperparameters={}, seed=1)
    batches = BatchSource(model, data.train.positives(), batch_size=batch_size, seed=1)
    (tap,) = resolve_layers("auto", model_taps(model, data), name)
    setup = None
    if loss is not None:
        targets = torch.randn(model.n_users + PADDING, tap.width, generator=torch.Generator().manual_seed(0))
        present = torch.ones(len(targets), dtype=torch.bool)
        present[0] = False
        users = torch.from_numpy(data.train.positives().user.astype("int64")) + PADDING
        setup = TransferSetup(tap, targets, user_weights(users, len(targets), present), alpha=0.5, loss=loss)
    transfer = TransferManager(model.module, PLAN, None if bare else setup)
    weights = WeightsManager(model.module, PLAN, lambda p: torch.optim.Adam(p, lr=1e-3, fused=True), extra=transfer.parameters)
    if bare and setup is not None:
        return BareArm(model, batches, transfer, weights, tap.name, setup)
    return Arm(model, batches, transfer, weights, tap.name)


def main() -> None:
    """Prints one line a model: layer, CPU seconds an epoch without and with transfer, ratio, met or not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--models", nargs="+", default=["BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN", "DeepFM"])
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--loss", default="mse")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--path", default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = DatasetConfig(name=arguments.dataset, path=arguments.path, positive=PositiveRule(rating_at_least=4))
        data = prepare(config, study_seed=1, store=ArtifactStore(folder))
        head = f"{'model':10} {'layer':28} {'batch':>6} {'plain s':>8} {'phase 1 s':>9} {'ratio':>6} {'bare':>6} {'grown MB':>8}"
        print(f"{head}  target <= {TARGET}")
        for name in arguments.models:
            size = BATCH_SIZES.get(name, arguments.batch_size)
            arms = [
                make_arm(name, data, size, None),
                make_arm(name, data, size, arguments.loss),
                make_arm(name, data, size, "mse", bare=True),
            ]
            times, resident = [], []
            for epoch in range(1, arguments.pairs + 2):
                turn = epoch % len(arms)
                spent = {place: arms[place].epoch_cpu_s(epoch) for place in (*range(turn, len(arms)), *range(turn))}
                times.append([spent[place] for place in range(len(arms))])
                resident.append(psutil.Process().memory_info().rss / 1e6)
            times = times[1:]  # the first round warms up
            ratio, bare = (statistics.median(row[place] / row[0] for row in times) for place in (1, 2))
            medians = [statistics.median(column) for column in zip(*times, strict=True)]
            grown = resident[-1] - resident[len(resident) // 3]
            verdict = "met" if ratio <= TARGET else "NOT met"
            measured = f"{medians[0]:8.3f} {medians[1]:9.3f} {ratio:6.3f} {bare:6.3f} {grown:8.1f}"
            print(f"{name:10} {arms[1].layer:28} {size:6d} {measured}  {verdict}", flush=True)


if __name__ == "__main__":
    main()
