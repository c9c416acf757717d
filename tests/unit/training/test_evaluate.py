import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkt_ray.data.prepared import Rows
from llmkt_ray.errors import TrainingError
from llmkt_ray.training import evaluate
from llmkt_ray.training.evaluate import RankingTask
from llmkt_ray.training.metrics import parse_metrics

METRICS = parse_metrics(["NDCG@10", "Recall@10"])


@pytest.fixture
def scores(data):
    return torch.from_numpy(np.random.default_rng(5).standard_normal((data.n_users, data.n_items)).astype(np.float32))


def test_nothing_masked_is_recommended_and_low_rated_train_items_are_masked_too(data, scores):
    ranking = RankingTask(data.test, [data.train_full, data.valid], n_items=data.n_items, metrics=METRICS).run(lambda users: scores[users])
    low = data.train_full.where(~data.train_full.positive)
    assert len(low)
    seen = {(u, i) for part in (data.train_full, data.valid) for u, i in zip(part.user.tolist(), part.item.tolist(), strict=True)}
    offered = {(u, i) for u, row in zip(ranking.users.tolist(), ranking.recommended.tolist(), strict=True) for i in row}
    assert not seen & offered


def test_users_are_those_with_a_positive_in_the_part(data, scores):
    ranking = RankingTask(data.test, [data.train_full, data.valid], n_items=data.n_items, metrics=METRICS).run(lambda users: scores[users])
    np.testing.assert_array_equal(ranking.users, np.unique(data.test.positives().user))
    assert 7 not in ranking.users


def test_block_size_does_not_change_anything(data, scores, monkeypatch):
    whole = RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=METRICS).run(lambda users: scores[users])
    monkeypatch.setattr(evaluate, "_SCORES_AT_ONCE", data.n_items * 7)
    asked = []
    task = RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=METRICS)
    blocks = task.run(lambda users: asked.append(len(users)) or scores[users])
    assert max(asked) == 7
    np.testing.assert_array_equal(whole.recommended, blocks.recommended)
    assert whole.means == blocks.means


@pytest.mark.parametrize(
    "layout",
    [
        lambda part: torch.nn.functional.pad(part, (1, 0))[:, 1:],
        lambda part: torch.nn.functional.pad(part, (3, 5, 2, 0))[2:, 3:-5],
        lambda part: part.T.contiguous().T,
    ],
    ids=["a padding item before", "a part of more", "transposed"],
)
def test_how_scores_lie_in_memory_does_not_matter(data, scores, layout):
    task = RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=METRICS)
    plain, other = task.run(lambda users: scores[users]), task.run(lambda users: layout(scores[users]))
    np.testing.assert_array_equal(plain.recommended, other.recommended)


def test_one_row_of_scores_for_all_users_is_masked_for_each_by_their_own(data):
    row = torch.linspace(1, 0, data.n_items)
    task = RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=METRICS)
    shared, own = task.run(lambda users: row.expand(len(users), -1)), task.run(lambda users: row.repeat(len(users), 1))
    np.testing.assert_array_equal(shared.recommended, own.recommended)
    assert len(np.unique(shared.recommended, axis=0)) > 1


def test_users_times_items_is_never_whole_in_memory():
    """A million scores at once at the most, whatever the sizes: here the whole would be 24 million."""
    n_users, n_items, asked = 4000, 6000, []
    users = np.arange(n_users, dtype=np.int32)
    rows = Rows(users, users % n_items, np.ones(n_users, np.float32), np.zeros(n_users), np.ones(n_users, bool))
    task = RankingTask(rows, [rows.where(np.zeros(n_users, bool))], n_items=n_items, metrics=METRICS)
    row = torch.linspace(1, 0, n_items)
    ranking = task.run(lambda block: asked.append(len(block)) or row.expand(len(block), -1).clone())
    assert max(asked) * n_items <= 1 << 20
    assert sum(asked) == len(ranking.users) == n_users
    assert ranking.means["Recall@10"] == pytest.approx(10 / n_users)


def test_fewer_items_than_k(data, scores):
    deep = parse_metrics(["Recall@500"])
    ranking = RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=deep).run(lambda users: scores[users])
    assert ranking.means["Recall@500"] == 1.0


def test_nan_scores_are_an_error(data, scores):
    scores[3, 4] = float("nan")
    with pytest.raises(TrainingError, match="NaN"):
        RankingTask(data.valid, [data.train_full], n_items=data.n_items, metrics=METRICS).run(lambda users: scores[users])


def test_a_part_without_positives_is_refused(data):
    empty = data.test.where(np.zeros(len(data.test), dtype=bool))
    with pytest.raises(TrainingError, match="no positive rows"):
        RankingTask(empty, [data.train_full], n_items=data.n_items, metrics=METRICS)


N_USERS, N_ITEMS = 6, 9
PAIRS = st.lists(st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1), st.booleans()), max_size=30)


def rows_of(triples):
    user, item, positive = (np.array([t[place] for t in triples], dtype=kind) for place, kind in enumerate((np.int32, np.int32, bool)))
    return Rows(user, item, np.ones(len(user), np.float32), np.zeros(len(user)), positive)


@settings(max_examples=60, deadline=None)
@given(held_out=PAIRS, train=PAIRS, valid=PAIRS, seed=st.integers(0, 99))
def test_masks_and_positives_are_each_users_own_whatever_the_rows(held_out, train, valid, seed):
    """Rows in any order, users without any row in a part, items that are masked and positive: by brute force, user by user."""
    scores = torch.from_numpy(np.random.default_rng(seed).permutation(N_USERS * N_ITEMS).reshape(N_USERS, N_ITEMS).astype(np.float32))
    liked = {u: {i for v, i, positive in held_out if v == u and positive} for u in range(N_USERS)}
    if not any(liked.values()):
        return
    masked = {u: {i for v, i, _ in [*train, *valid] if v == u} for u in range(N_USERS)}
    task = RankingTask(rows_of(held_out), [rows_of(train), rows_of(valid)], n_items=N_ITEMS, metrics=parse_metrics(["Recall@3", "MRR@3"]))
    ranking = task.run(lambda users: scores[users].clone())
    assert ranking.users.tolist() == [u for u in range(N_USERS) if liked[u]]
    for place, user in enumerate(ranking.users.tolist()):
        offered = sorted(set(range(N_ITEMS)) - masked[user], key=lambda item, user=user: -float(scores[user, item]))[:3]
        assert ranking.recommended[place, : len(offered)].tolist() == offered
        if len(offered) == 3:  # with fewer left the list is filled up with masked items
            hits = [item in liked[user] for item in offered]
            assert ranking.per_user["Recall@3"][place] == pytest.approx(sum(hits) / len(liked[user]))
            assert ranking.per_user["MRR@3"][place] == pytest.approx(1 / (hits.index(True) + 1) if any(hits) else 0)
