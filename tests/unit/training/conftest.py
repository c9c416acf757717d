"""A small synthetic split on which every model trains in a fraction of a second."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.embeddings.targets import Targets
from llmkt_ray.study import INPUT_ARMS
from llmkt_ray.training.layers import probe_layers, resolve_layers
from llmkt_ray.training.loop import TrainingLoop
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from llmkt_ray.training.trial import run_trial

N_USERS, N_ITEMS, RANK = 60, 90, 4
METRICS = ("NDCG@10", "Recall@10", "Hit@10", "MRR@10", "Precision@5", "MAP@5")
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "BPR": {"embedding_size": 16},
    "NeuMF": {"mf_embedding_size": 16, "mlp_embedding_size": 16, "mlp_hidden_size": [16, 8]},
    "SimpleX": {"embedding_size": 16, "train_neg_sample_args": {"distribution": "uniform", "sample_num": 3}},
    "MultiVAE": {"mlp_hidden_size": [32], "latent_dimension": 16, "total_anneal_steps": 50},
    "LightGCN": {"embedding_size": 16},
}
BATCH_SIZES = {"MultiVAE": 16}


def rows_of(users: np.ndarray, items: np.ndarray, ratings: np.ndarray, start: float = 0.0) -> Rows:
    order = np.argsort(users, kind="stable")
    return Rows(
        users[order].astype(np.int32),
        items[order].astype(np.int32),
        ratings[order].astype(np.float32),
        np.arange(len(users)) + start,
        ratings[order] >= 3,
    )


def make_data(seed: int = 0, key: str = "synthetic") -> PreparedData:
    """A split with structure: users like items near them in a hidden space; some ratings are low, one user has no test row."""
    rng = np.random.default_rng(seed)
    taste = rng.standard_normal((N_USERS, RANK)) @ rng.standard_normal((N_ITEMS, RANK)).T + rng.standard_normal((N_USERS, N_ITEMS)) * 0.3
    parts: dict[str, list[tuple[int, int, float]]] = {"train": [], "valid": [], "test": []}
    for user in range(N_USERS):
        liked = np.argsort(-taste[user])[: 14 + user % 9]
        disliked = rng.choice(np.argsort(taste[user])[:40], 4, replace=False)
        chosen = rng.permutation(np.concatenate([liked, disliked]))
        for place, item in enumerate(chosen.tolist()):
            part = "train" if place < 0.6 * len(chosen) else "valid" if place < 0.8 * len(chosen) else "test"
            if user == 7 and part == "test":
                part = "train"
            parts[part].append((user, item, 5.0 if item in set(liked.tolist()) else 1.0))
    made = {
        name: rows_of(*(np.asarray(column) for column in zip(*rows, strict=True)), start=place * 1e6)
        for place, (name, rows) in enumerate(parts.items())
    }
    user_tokens = np.asarray([f"u{i:03d}" for i in range(N_USERS)])
    item_tokens = np.asarray([f"i{i:03d}" for i in range(N_ITEMS)])
    return PreparedData(
        key=key,
        name="synthetic",
        domain="generic",
        user_tokens=user_tokens,
        item_tokens=item_tokens,
        train=made["train"],
        train_full=made["train"],
        valid=made["valid"],
        test=made["test"],
        users=pa.table({"user_id": user_tokens.tolist()}),
        items=pa.table({"item_id": item_tokens.tolist()}),
        notes={},
    )


def make_targets(data: PreparedData, dims: int, seed: int = 0) -> Targets:
    """Standardised targets that know each user's train positives; every tenth user has none."""
    rng = np.random.default_rng(seed)
    positives = data.train.positives()
    table = np.zeros((data.n_users, data.n_items))
    table[positives.user, positives.item] = 1.0
    matrix = table @ rng.standard_normal((data.n_items, dims))
    matrix = (matrix - matrix.mean(axis=0)) / matrix.std(axis=0)
    present = np.arange(data.n_users) % 10 != 3
    matrix[~present] = 0.0
    return Targets(key="targets", matrix=matrix.astype(np.float32), present=present, user_tokens=data.user_tokens)


def make_spec(data: PreparedData, model: str, arm: str = "baseline", **changes: Any) -> TrialSpec:
    """A short trial's spec; a transferring arm gets alpha .5 on the model's `auto` layer unless told otherwise."""
    values: dict[str, Any] = {
        "study_seed": 11,
        "dataset": data.name,
        "split_key": data.key,
        "model": model,
        "hyperparameters": changes.get("hyperparameters", HYPERPARAMETERS.get(model, {})),
        "epochs": 4,
        "batch_size": BATCH_SIZES.get(model, 128),
        "learning_rate": 0.01,
        "arm": arm,
        "metrics": METRICS,
        "select_on": "NDCG@10",
        "seed_index": 0,
    }
    if arm in INPUT_ARMS:
        values |= {"targets_key": "targets"}
    elif arm not in ("baseline", "alpha0", "reference"):
        tap = resolve_layers("auto", probe_layers(model, data, values["hyperparameters"]), model)[0]
        values |= {"alpha": 0.5, "layer": tap.name, "targets_key": "targets", "balance": "initial"}
    return TrialSpec(**(values | changes))


def same(one: TrialResult, other: TrialResult) -> None:
    """Asserts that two results are equal bit for bit, measurements excepted."""
    assert one.test == other.test
    assert one.valid == other.valid
    assert one.best_epoch == other.best_epoch
    assert one.recommended is not None
    assert other.recommended is not None
    np.testing.assert_array_equal(one.recommended, other.recommended)
    for name, values in one.users.items():
        np.testing.assert_array_equal(values, other.users[name])
    for a, b in zip(one.epochs, other.epochs, strict=True):
        left, right = ({k: v for k, v in row.items() if k != "duration_s"} for row in (a, b))
        np.testing.assert_equal(left, right)  # NaN equals NaN here


@pytest.fixture
def run_steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """For each trial that is run: the weights before its first step, and for each step the batch and the state of the global generators."""
    trials: list[dict[str, Any]] = []
    original = TrainingLoop._train

    def train(self: Any, epoch: int) -> None:
        model = self._model
        own = model.loss
        if epoch == 1:
            trials.append({"weights": {name: value.clone() for name, value in model.module.state_dict().items()}, "steps": []})

        def loss(batch: Any, of: Any = None) -> torch.Tensor:
            draws = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002 - what RecBole draws from
            trials[-1]["steps"].append(({name: batch[name].clone() for name in batch.columns}, draws))
            return own(batch, of)

        model.loss = loss
        try:
            original(self, epoch)
        finally:
            del model.loss

    monkeypatch.setattr(TrainingLoop, "_train", train)
    return trials


def twins(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Asserts that two trials started from equal weights, saw equal batches in equal order and drew equal random numbers in every step."""
    assert one["weights"].keys() == other["weights"].keys()
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name
    assert len(one["steps"]) == len(other["steps"]) > 1
    for (batch, draws), (batch2, draws2) in zip(one["steps"], other["steps"], strict=True):
        assert batch.keys() == batch2.keys()
        assert all(torch.equal(column, batch2[name]) for name, column in batch.items())
        assert torch.equal(draws[0], draws2[0])
        assert (draws[1] == draws2[1]).all()
        assert draws[2] == draws2[2]


@pytest.fixture(scope="session")
def data() -> PreparedData:
    return make_data()


@pytest.fixture(scope="session")
def run(data: PreparedData) -> Callable[..., TrialResult]:
    """Runs a trial on the synthetic split: `run(model, arm, **spec changes)`."""

    def go(
        model: str, arm: str = "baseline", *, targets: Targets | None = None, options: dict[str, Any] | None = None, **changes: Any
    ) -> TrialResult:
        spec = make_spec(data, model, arm, **changes)
        if spec.layer is not None and targets is None:
            tap = resolve_layers((spec.layer,), probe_layers(model, data, spec.hyperparameters), model)[0]
            targets = make_targets(data, tap.width)
        return run_trial(spec, TrialArtifacts(data, targets), **(options or {}))

    return go
