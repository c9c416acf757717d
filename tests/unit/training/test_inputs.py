"""Direct input: what goes into the user tables, and that nothing else differs from alpha0."""

import numpy as np
import pytest
import torch

from llmkt_ray.errors import TrainingError
from llmkt_ray.training import trial
from llmkt_ray.training.bridge.models import build_model
from llmkt_ray.training.bridge.user_tables import user_tables
from llmkt_ray.training.inputs import bake, give_profiles
from llmkt_ray.training.layers import probe_split
from llmkt_ray.training.teacher import in_model_ids
from tests.unit.training.conftest import HYPERPARAMETERS, make_spec, make_targets


def built(model, data, seed=3):
    return build_model(model, data, hyperparameters=HYPERPARAMETERS.get(model, {}), seed=seed)


def spec_of(data, model, arm):
    return make_spec(data, model, arm)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("BPR", ["user_embedding"]),
        ("LightGCN", ["user_embedding"]),
        ("SimpleX", ["user_emb"]),
        ("NeuMF", ["user_mf_embedding", "user_mlp_embedding"]),
        ("MultiVAE", []),
        ("RecVAE", []),
        ("SASRec", []),
    ],
)
def test_tables_of_users_are_found(data, model, expected):
    assert [table.name for table in user_tables(built(model, data))] == expected


def test_a_context_models_users_are_rows_of_its_one_table():
    split = probe_split()
    model = build_model("DeepFM", split, hyperparameters={}, seed=1)
    (table,) = user_tables(model)
    weight = model.module.get_submodule(table.name).weight
    users = torch.tensor([2, 5])
    loss = model.loss(model.labelled(users, torch.tensor([1, 3]), torch.ones(2)))
    touched = torch.autograd.grad(loss, weight)[0].abs().sum(dim=1).nonzero().flatten()
    block = touched[(touched >= table.first) & (touched < table.first + split.n_users + 1)]
    assert block.tolist() == [table.first + 2, table.first + 5]


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "SimpleX", "LightGCN"])
def test_input_init_starts_the_users_with_a_profile_from_it_on_the_models_own_scale(data, model):
    targets = make_targets(data, 16)
    plain, given = built(model, data), built(model, data)
    give_profiles(spec_of(data, model, "input_init"), given, data, targets)
    wanted, present = in_model_ids(targets, data, given)
    names = {table.name for table in user_tables(given)}
    for name, value in plain.module.state_dict().items():
        other = given.module.state_dict()[name]
        if name.removesuffix(".weight") not in names:
            assert torch.equal(value, other), f"{name} must be as in alpha0"
            continue
        assert torch.equal(value[~present], other[~present]), "users without a profile keep their start"
        scale = other[present] / wanted[present]
        assert float(scale.std() / scale.mean()) < 1e-4, "one scale for all: the target itself"
        assert float(other[present].square().mean()) == pytest.approx(float(value[present].square().mean()), rel=1e-4)


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "NeuMF"])
def test_input_concat_starts_as_alpha0_and_learns_a_projection_of_the_profile(data, run, model):
    targets = make_targets(data, 6)
    plain, given = built(model, data), built(model, data)
    give_profiles(spec_of(data, model, "input_concat"), given, data, targets)
    for one in (plain, given):
        one.module.eval()
    users = torch.arange(data.n_users)
    torch.testing.assert_close(plain.scores(users), given.scores(users), rtol=0, atol=0)
    result = run(model, "input_concat", targets=targets)
    alpha0 = run(model, "alpha0")
    assert result.facts["n_parameters"] - alpha0.facts["n_parameters"] == 6 * sum(t.width for t in user_tables(plain))
    assert result.test != alpha0.test


def test_joined_profiles_reach_the_scores_of_users_with_a_profile_only(data):
    targets = make_targets(data, 6)
    model = built("BPR", data)
    before = model.scores(torch.arange(data.n_users))
    give_profiles(spec_of(data, "BPR", "input_concat"), model, data, targets)
    joined = model.module.get_submodule("user_embedding.parametrizations.weight.0")
    with torch.no_grad():
        joined.projection.normal_(generator=torch.Generator().manual_seed(1))
    after = model.scores(torch.arange(data.n_users))
    changed = (before - after).abs().amax(dim=1).numpy() > 1e-6
    np.testing.assert_array_equal(changed, targets.present)
    bake(model.module)
    assert "user_embedding.weight" in dict(model.module.named_parameters())
    torch.testing.assert_close(model.scores(torch.arange(data.n_users)), after, rtol=0, atol=0)


@pytest.mark.parametrize("arm", ["input_init", "input_concat"])
def test_direct_input_is_refused_without_a_table_or_targets(data, run, arm):
    with pytest.raises(TrainingError, match=f"control '{arm}' is impossible with MultiVAE: it has no table"):
        run("MultiVAE", arm, targets=make_targets(data, 16))
    with pytest.raises(TrainingError, match="needs targets 'targets', but was given none"):
        run("BPR", arm)


def test_serving_is_timed_of_the_model_that_would_be_served(data, run, monkeypatch):
    """Joined profiles are written into the table once; joining all users for every request would be timed as the rival's latency."""
    timed = []
    monkeypatch.setattr(trial, "serving_s", lambda model: timed.append(dict(model.module.named_parameters())) or 0.001)
    result = run("NeuMF", "input_concat", targets=make_targets(data, 6))
    assert {"user_mf_embedding.weight", "user_mlp_embedding.weight"} < set(timed[0])
    assert not any("parametrizations" in name for name in timed[0])
    assert result.facts["serving_1000_pairs_s"] == 0.001
