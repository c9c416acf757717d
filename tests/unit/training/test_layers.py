"""The taps of RecBole's models, on a small synthetic split."""

import random

import numpy as np
import pytest
import torch

from llmkt_ray.errors import LayerError, TrainingError
from llmkt_ray.training.bridge.models import build_model
from llmkt_ray.training.layers import RecBoleProbe, model_taps, probe_layers, probe_split, resolve_layers
from llmkt_ray.transfer.hook import HookManager
from llmkt_ray.transfer.taps import candidates

SPLIT = probe_split()


def alignments(model, **hyperparameters):
    return {tap.name: tap.alignment for tap in probe_layers(model, SPLIT, hyperparameters)}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("BPR", {"user_embedding": "user_rows", "item_embedding": "none", "user_embedding:input": "none", "forward[0]": "user_rows"}),
        (
            "NeuMF",
            {
                "user_mf_embedding": "user_rows",
                "user_mlp_embedding": "user_rows",
                "mlp_layers.mlp_layers.1": "pair",
                "predict_layer": "pair",
                "sigmoid": "none",
            },
        ),
        ("SimpleX", {"user_emb": "user_rows", "UI_map": "user_rows", "dropout": "user_rows"}),
        (
            "MultiVAE",
            {
                "encoder.0": "user_rows",
                "encoder.1": "user_rows",
                "decoder:input": "user_rows",
                "decoder.2": "user_rows",
                "forward[1]": "user_rows",
                "encoder:input": "none",
            },
        ),
        ("LightGCN", {"forward[0]": "user_table", "forward[1]": "none", "user_embedding": "user_rows"}),
        ("SGL", {"forward[0]": "user_table", "forward[1]": "none"}),
        ("NGCF", {"GNNlayers.0": "user_item_table", "GNNlayers.2": "user_item_table", "forward[0]": "user_table"}),
        ("DMF", {"user_linear": "user_rows", "user_fc_layers.mlp_layers.5": "user_rows", "item_linear": "none"}),
        ("ENMF", {"user_embedding": "user_rows", "dropout": "user_rows"}),
        ("GCMC", {"GcEncoder.dense_layer_u": "user_table"}),
        ("DeepFM", {"token_embedding_table.embedding@0": "user_rows", "mlp_layers.mlp_layers.1": "pair"}),
        ("AutoInt", {"token_embedding_table.embedding@0": "user_rows", "mlp_layers.mlp_layers.1": "pair"}),
        ("DCN", {"token_embedding_table.embedding@0": "user_rows"}),
        (
            "SASRec",
            {"item_embedding": "sequence", "trm_encoder.layer.1": "sequence", "forward": "user_rows", "item_embedding:input": "none"},
        ),
        ("GRU4Rec", {"gru_layers[0]": "sequence", "dense": "sequence", "forward": "user_rows"}),
    ],
)
def test_where_a_hook_can_sit_in_recboles_models(model, expected):
    found = alignments(model)
    assert {name: found[name] for name in expected} == expected


def test_simplex_with_several_negatives_uses_the_first_rows_of_the_batch():
    found = alignments("SimpleX", train_neg_sample_args={"sample_num": 3})
    assert {name: found[name] for name in ("user_emb", "UI_map", "dropout")} == dict.fromkeys(
        ("user_emb", "UI_map", "dropout"), "user_prefix"
    )


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("BPR", "user_embedding"),
        ("NeuMF", "user_mlp_embedding"),
        ("SimpleX", "dropout"),
        ("MultiVAE", "decoder:input"),
        ("LightGCN", "forward[0]"),
        ("SGL", "forward[0]"),
        ("NGCF", "GNNlayers.2"),
        ("DMF", "user_fc_layers.mlp_layers.5"),
        ("LINE", "user_embedding"),
        ("RecVAE", "decoder:input"),  # not `prior`, a density that no score depends on
    ],
)
def test_auto_is_one_user_aligned_layer(model, layer):
    (tap,) = resolve_layers("auto", probe_layers(model, SPLIT, {}), model)
    assert tap.name == layer
    assert tap.knows_user


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN", "NGCF", "DMF"])
def test_every_candidate_gives_a_finite_gradient_to_the_model_and_the_rows_of_the_batchs_users(model):
    built = build_model(model, SPLIT, hyperparameters={}, seed=3)
    probe = RecBoleProbe(built, SPLIT)
    built.module.train()
    for tap in candidates(model_taps(built, SPLIT)):
        with HookManager(built.module, tap) as hook:
            probe.loss(probe.users, False)
            h, users = hook.take(probe.users)
        assert h.shape == (len(users), tap.width)
        assert torch.equal(users, probe.users[: len(users)])
        built.module.zero_grad()
        h.square().sum().backward()
        reached = [parameter.grad for parameter in built.module.parameters() if parameter.grad is not None]
        assert reached
        assert all(torch.isfinite(gradient).all() for gradient in reached)


def test_a_table_row_is_the_user_of_that_recbole_id():
    built = build_model("LightGCN", SPLIT, hyperparameters={}, seed=3)
    probe = RecBoleProbe(built, SPLIT)
    (tap,) = resolve_layers("auto", model_taps(built, SPLIT))
    with HookManager(built.module, tap) as hook:
        probe.loss(probe.users, False)
        h, users = hook.take(probe.users)
    assert torch.equal(h, built.module.forward()[0][users])


def test_probing_leaves_the_global_random_state_alone():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 - what RecBole draws from
    probe_layers("SGL", None, {})
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def test_a_model_that_is_probed_trains_as_if_it_had_not_been():
    losses = []
    for probed in (False, True):
        built = build_model("MultiVAE", SPLIT, hyperparameters={}, seed=3)
        if probed:
            model_taps(built, SPLIT)
        torch.manual_seed(0)
        built.module.train()
        users = torch.arange(1, 8)
        losses.append([float(built.loss(built.rows(users)).detach()) for _ in range(3)] + [built.module.update])
    assert losses[0] == losses[1]


def test_all_are_the_candidates_and_layer_k_is_the_kth_of_them():
    taps = probe_layers("MultiVAE", SPLIT, {})
    every = resolve_layers("all", taps, "MultiVAE")
    assert [tap.name for tap in every[:4]] == ["encoder.0", "encoder.1", "encoder.2", "decoder:input"]
    assert resolve_layers(("layer 2", "encoder.0", "2"), taps, "MultiVAE") == (every[1], every[0])
    assert resolve_layers("encoder.1", taps, "MultiVAE") == (every[1],)


def test_trap_06_a_wrong_layer_names_the_closest_and_what_to_run():
    taps = probe_layers("NeuMF", SPLIT, {})
    with pytest.raises(LayerError, match=r"'mlp_layers.mlp_layers.9'.*did you mean 'mlp_layers.mlp_layers.*run: llmkt layers NeuMF"):
        resolve_layers(("mlp_layers.mlp_layers.9",), taps, "NeuMF")
    with pytest.raises(LayerError, match="layer 3 of NeuMF does not exist: it has 2"):
        resolve_layers(("layer 3",), taps, "NeuMF")


def test_trap_07_a_pair_level_layer_is_never_chosen_but_can_be_named():
    taps = probe_layers("NeuMF", SPLIT, {})
    assert not any("mlp_layers" in tap.name for tap in resolve_layers("all", taps, "NeuMF"))
    (named,) = resolve_layers(("mlp_layers.mlp_layers.1",), taps, "NeuMF")
    assert named.alignment == "pair"


@pytest.mark.parametrize("model", ["EASE", "Pop", "ItemKNN"])
def test_a_reference_has_no_layer(model):
    with pytest.raises(LayerError, match="reference model"):
        probe_layers(model, None, {})


def test_an_unknown_model_offers_the_closest():
    with pytest.raises(TrainingError, match="did you mean 'NeuMF'"):
        probe_layers("NeuMff", None, {})


def test_too_few_users_to_probe_with_are_refused():
    with pytest.raises(LayerError, match="too few to probe"):
        probe_layers("BPR", probe_split(n_users=4), {})
