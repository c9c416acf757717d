"""From embeddings to the rows of a training step: whatever the order of users, whoever is filtered out or lacks something."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import Rows
from llmkt_ray.embeddings.targets import make_targets
from llmkt_ray.study import ReductionConfig
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.models import build_model
from llmkt_ray.training.teacher import in_model_ids
from llmkt_ray.transfer.loss import user_weights

from .conftest import make_data

N, ITEMS, DIMS = 12, 40, 3
RAW = ReductionConfig(method="none", standardize=False)


def vector(token):
    """What stands for a user's profile: a function of the raw id."""
    number = int(token[1:])
    return np.array([number, number**2, 1 / (1 + number)])


def items_of(token):
    """The items of a user: one to four, a function of the raw id, so that a batch's row tells whose it is."""
    number = int(token[1:])
    return [(3 * number + place) % ITEMS for place in range(1 + number % 4)]


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(range(N)),
    kept=st.sets(st.integers(0, N - 1), min_size=6),
    without_profile=st.sets(st.integers(0, N - 1), max_size=2),
    without_rows=st.sets(st.integers(0, N - 1), max_size=1),
    rows=st.randoms(use_true_random=False),
    model=st.sampled_from(["BPR", "NeuMF", "MultiVAE"]),
)
def test_every_row_of_a_batch_is_taught_its_own_users_profile_and_users_without_one_nothing(
    order, kept, without_profile, without_rows, rows, model
):
    tokens = np.asarray([f"u{number}" for number in order if number in kept])
    pairs = [(place, item) for place, token in enumerate(tokens) if int(token[1:]) not in without_rows for item in items_of(token)]
    rows.shuffle(pairs)
    users, items = (np.asarray(column, dtype=np.int32) for column in zip(*pairs, strict=True))
    train = Rows(users, items, np.full(len(users), 5, np.float32), np.arange(len(users)) + 0.0, np.ones(len(users), bool))
    split = replace(
        make_data(), user_tokens=tokens, item_tokens=np.asarray([f"i{i}" for i in range(ITEMS)]), train=train, train_full=train,
        users=pa.table({"user_id": tokens.tolist()}), items=pa.table({"item_id": [f"i{i}" for i in range(ITEMS)]}),
    )  # fmt: skip
    described = [token for token in tokens.tolist() if int(token[1:]) not in without_profile]
    rows.shuffle(described)
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(Path(folder))
        store.save(
            "embeddings", "mixed", inputs={}, arrays={"vectors": np.stack([vector(token) for token in described]).astype(np.float32)},
            tables={"users": pa.table({"user_id": described, "text_sha256": ["" for _ in described]})},
        )  # fmt: skip
        targets = make_targets(embeddings_key="mixed", data=split, reduction=RAW, dims=DIMS, study_seed=1, store=store)
        built = build_model(model, split, hyperparameters={}, seed=1)
        table, present = in_model_ids(targets, split, built)
    taught = {token for token in described if int(token[1:]) not in without_rows}
    assert built.dataset.id2token("user_id", np.flatnonzero(present.numpy())).tolist() == [t for t in tokens.tolist() if t in taught]
    assert not table[~present].any()
    batches = BatchSource(built, train, batch_size=5, seed=3)
    repeated = torch.from_numpy(np.repeat(np.arange(len(tokens)) + 1, batches.row_counts()))
    weights, total = user_weights(repeated, len(tokens) + 1, present), dict.fromkeys(tokens.tolist(), 0.0)
    for batch in batches.epoch(1):
        for place, user in enumerate(batch.users.tolist()):
            token = str(built.dataset.id2token("user_id", user))
            if model == "BPR":  # the row's item is one of this user's: the id is not only consistent, it is theirs
                assert int(batch.interaction["item_id"][place]) - 1 in items_of(token)
            expected = vector(token) if token in taught else np.zeros(DIMS)
            np.testing.assert_allclose(table[user].numpy(), expected, rtol=1e-6)
            total[token] += float(weights[user])
    shares = [total[token] for token in taught]
    np.testing.assert_allclose(shares, shares[0], rtol=1e-5)
    assert all(total[token] == 0 for token in total if token not in taught)
