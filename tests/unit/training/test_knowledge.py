import numpy as np
import pytest
import torch

from llmkt_ray.embeddings.targets import Targets
from llmkt_ray.errors import TrainingError
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.training.bridge.models import build_model
from llmkt_ray.training.knowledge import knowledge_of, tap_rows, train_plainly
from llmkt_ray.training.layers import model_taps, probe_split
from llmkt_ray.training.spec import TrialArtifacts, TrialSpec
from llmkt_ray.training.trial import open_test, run_trial
from llmkt_ray.transfer.taps import candidates, named_tap

SPLIT = probe_split(n_users=160)


def targets_of(matrix, present=None):
    return Targets("t", matrix.astype(np.float32), np.ones(len(matrix), dtype=bool) if present is None else present, SPLIT.user_tokens)


def drawn(width, seed=0):
    return np.random.default_rng(seed).normal(size=(SPLIT.n_users, width))


def tap_of(model, name):
    built = build_model(model, SPLIT, hyperparameters={"embedding_size": 8}, seed=1)
    return built, named_tap(model_taps(built, SPLIT), name, model)


def test_a_layer_that_holds_the_profile_is_told_from_one_that_does_not():
    built, tap = tap_of("BPR", "user_embedding")
    hidden = drawn(8)
    with torch.no_grad():
        built.module.user_embedding.weight[1:] = torch.from_numpy(hidden).float()
    (knows,) = knowledge_of(built, SPLIT, targets_of(hidden @ drawn(160, seed=2)[:8, :5]), [tap])
    (ignorant,) = knowledge_of(built, SPLIT, targets_of(drawn(5, seed=3)), [tap])
    assert knows.r2 > 0.99
    assert ignorant.r2 < 0.1
    assert knows.cka > 0.5 > 0.2 > ignorant.cka


@pytest.mark.parametrize(("model", "layer"), [("BPR", "user_embedding"), ("LightGCN", "forward[0]")])
def test_rows_are_those_of_the_users_asked_for_and_the_model_stays_as_it_was(model, layer):
    built, tap = tap_of(model, layer)
    built.module.train()
    users = np.asarray([5, 3, 99, 42])
    rows = tap_rows(built, SPLIT, tap, users)
    table = built.module.user_embedding.weight if model == "BPR" else built.module.forward()[0]
    np.testing.assert_allclose(rows, table[users + 1].detach().numpy(), rtol=1e-6)
    assert built.module.training


def test_a_sequence_is_read_at_its_last_filled_position():
    built, tap = tap_of("GRU4Rec", "item_embedding")
    users = np.asarray([7, 2])
    rows = tap_rows(built, SPLIT, tap, users)
    last = [SPLIT.train.item[SPLIT.train.user == user][-1] + 1 for user in users]
    np.testing.assert_allclose(rows, built.module.item_embedding.weight[last].detach().numpy(), rtol=1e-6)


def test_users_without_a_profile_are_left_out_and_too_few_are_refused():
    built, tap = tap_of("BPR", "user_embedding")
    present = np.zeros(SPLIT.n_users, dtype=bool)
    present[:40] = True
    (found,) = knowledge_of(built, SPLIT, targets_of(drawn(3), present), [tap])
    assert found.n_users == 40
    present[5:] = False
    with pytest.raises(TrainingError, match="5 users have a profile"):
        list(knowledge_of(built, SPLIT, targets_of(drawn(3), present), [tap]))


@pytest.mark.parametrize("model", ["NeuMF", "RecVAE"])
def test_plain_training_is_the_baselines_and_leaves_the_global_random_state(model):
    spec = TrialSpec(
        study_seed=1, dataset="probe", split_key=SPLIT.key, model=model, epochs=2, batch_size=64, learning_rate=0.01, arm="baseline",
        schedule=ScheduleConfig(kind="joint"), metrics=("NDCG@10",), select_on="NDCG@10", seed_index=0,
    )  # fmt: skip
    state, seen = torch.get_rng_state(), []
    built = train_plainly(spec, SPLIT, on_epoch=seen.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert [row["epoch"] for row in seen] == [1, 2]
    result = run_trial(spec, TrialArtifacts(SPLIT))
    assert open_test(spec, built, SPLIT).means == result.test, "the very weights that the baseline is tested with"
    found = list(knowledge_of(built, SPLIT, targets_of(drawn(3)), candidates(model_taps(built, SPLIT))))
    assert [k.tap.name for k in found][:1] == ["user_mf_embedding" if model == "NeuMF" else "encoder.fc1"]
    assert all(0 <= k.cka <= 1 and k.r2 <= 1 for k in found)
