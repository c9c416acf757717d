import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkt_ray.errors import LayerError
from llmkt_ray.transfer.discovery import discover_taps
from llmkt_ray.transfer.taps import auto_tap, candidates

ALL_KINDS = ["rows", "prefix", "graph", "items_first", "encoder", "pair", "sequence", "mixing"]


def found(toy, kind, **sizes):
    model, batch = toy(kind, **sizes)
    return {tap.name: tap for tap in discover_taps(model, batch)}


def test_rows_of_the_batch(toy):
    taps = found(toy, "rows")
    assert taps["user_embedding"].alignment == "user_rows"
    assert taps["user_embedding"].width == 8
    assert taps["forward[0]"].alias_of == "user_embedding"
    assert taps["item_embedding"].calls == 2
    assert "does not know the user" in taps["item_embedding"].reason
    assert not taps["forward[1]"].usable


def test_trap_09_an_integer_valued_tap_is_refused(toy):
    tap = found(toy, "rows")["user_embedding:input"]
    assert not tap.usable
    assert "integer-valued" in tap.reason


def test_a_module_that_never_fires_says_so(toy):
    tap = found(toy, "rows")["unused"]
    assert not tap.usable
    assert tap.calls == 0
    assert "never fires" in tap.reason


def test_first_rows_only(toy):
    taps = found(toy, "prefix")
    assert taps["user_embedding"].alignment == "user_prefix"
    assert taps["user_embedding"].shape == (9, 8)
    # Dropout returns its very input in evaluation mode, but in training the two differ: both are taps of their own.
    assert taps["dropout"].alias_of == ""
    assert [tap.name for tap in candidates(taps.values())] == ["user_embedding", "dropout"]


def test_tables_of_users_and_of_users_and_items(toy):
    taps = found(toy, "graph")
    assert taps["layer"].alignment == "user_item_table"
    assert taps["forward[0]"].alignment == "user_table"
    assert "table of items" in taps["forward[1]"].reason


def test_a_table_with_items_first_is_not_taken_for_users(toy):
    taps = found(toy, "items_first")
    assert not taps["layer"].usable
    assert "items come before users" in taps["layer"].reason
    assert taps["forward[0]"].alignment == "user_table"


def test_equally_many_users_and_items_are_told_apart_by_what_the_loss_reaches(toy):
    taps = found(toy, "items_first", n_users=23, n_items=23)
    assert taps["forward[0]"].alignment == "user_table"
    assert not taps["forward[1]"].usable


def test_an_encoder_its_code_and_its_tuple(toy):
    taps = found(toy, "encoder")
    assert {
        name: taps[name].alignment for name in ("encoder.0", "encoder.1", "encoder.2", "norm", "decoder:input", "decoder.0")
    } == dict.fromkeys(("encoder.0", "encoder.1", "encoder.2", "norm", "decoder:input", "decoder.0"), "user_rows")
    assert taps["forward[1]"].alias_of == "norm"
    assert taps["forward[2]"].alignment == "user_rows"
    assert taps["forward[2]"].alias_of == ""
    assert taps["decoder.2"].is_scores
    assert not taps["encoder.0"].is_scores
    assert "no parameter lies before it" in taps["encoder:input"].reason
    assert taps["encoder"].alias_of == "encoder.2"


def test_the_code_is_deeper_than_the_layers_before_it(toy):
    taps = found(toy, "encoder")
    assert taps["encoder.0"].depth < taps["encoder.2"].depth < taps["decoder:input"].depth < taps["decoder.0"].depth
    assert taps["encoder.0"].ahead > taps["encoder.2"].ahead > taps["decoder:input"].ahead > taps["decoder.2"].ahead > 0


def test_trap_07_pair_level_activations_are_told_from_the_users(toy):
    taps = found(toy, "pair")
    assert taps["network.0"].alignment == "pair"
    assert "item as well as on the user" in taps["network.0"].reason
    assert not taps["network.0"].knows_user
    assert taps["user_embedding"].alignment == "user_rows"


def test_fields_are_told_apart_by_position(toy):
    taps = found(toy, "pair")
    assert not taps["fields"].usable
    assert taps["fields@0"].alignment == "user_rows"
    assert "fields@1" not in taps
    assert taps["attention@0"].batch_dim == 1
    assert taps["attention@0"].alignment == "user_rows"


def test_sequences(toy):
    taps = found(toy, "sequence")
    assert taps["recurrent[0]"].alignment == "sequence"
    assert taps["item_embedding"].alignment == "sequence"
    assert taps["forward"].alignment == "user_rows"
    assert taps["recurrent[1]"].name == "recurrent[1]"
    assert taps["recurrent[1]"].batch_dim == 1


def test_a_second_dimension_that_is_not_the_history_is_no_sequence(toy):
    model, batch = toy("sequence")
    batch.longest = 7
    taps = {tap.name: tap for tap in discover_taps(model, batch)}
    assert not taps["item_embedding"].usable


def test_positions_of_an_unordered_history_are_nobody(toy):
    model, batch = toy("sequence")
    batch.positions = "history"
    taps = {tap.name: tap for tap in discover_taps(model, batch)}
    assert not taps["item_embedding"].usable
    assert not taps["recurrent[0]"].usable


def test_rows_that_mix_users_and_features_that_many_share_are_refused(toy):
    taps = found(toy, "mixing")
    assert "rows and users are not aligned" in taps["mixed"].reason
    assert "no parameter lies before it" in taps["constant"].reason
    assert "does not tell users apart" in taps["gender"].reason or "the same for all users" in taps["gender"].reason


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_probe_leaves_model_and_random_state_as_they_were(toy, kind):
    model, batch = toy(kind)
    model.train()
    weights = copy.deepcopy(model.state_dict())
    attributes = {k: v for k, v in vars(model).items() if not k.startswith("_")}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 - what RecBole draws from
    discover_taps(model, batch)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert {k: v for k, v in vars(model).items() if not k.startswith("_")} == attributes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_probing_twice_finds_the_same(toy, kind):
    model, batch = toy(kind)
    assert discover_taps(model, batch) == discover_taps(model, batch)


@settings(max_examples=15, deadline=None)
@given(count=st.sampled_from([5, 7, 9, 11]), n_users=st.integers(20, 40), n_items=st.integers(41, 60), seed=st.integers(0, 99))
def test_alignment_depends_neither_on_sizes_nor_on_weights(toy, count, n_users, n_items, seed):
    for kind, name, alignment in (
        ("rows", "user_embedding", "user_rows"),
        ("graph", "layer", "user_item_table"),
        ("pair", "network.0", "pair"),
    ):
        model, batch = toy(kind, count=count, n_users=n_users, n_items=n_items)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        taps = {tap.name: tap for tap in discover_taps(model, batch)}
        assert taps[name].alignment == alignment


def test_a_batch_as_long_as_a_table_is_refused(toy):
    model, batch = toy("rows", n_users=9)
    with pytest.raises(LayerError, match="another odd size"):
        discover_taps(model, batch)


def test_a_batch_of_all_users_is_refused(toy):
    model, batch = toy("rows", n_users=10)
    with pytest.raises(LayerError, match="outside its batch"):
        discover_taps(model, batch)


def test_a_layer_wider_than_a_small_catalogue_is_a_layer(toy):
    assert auto_tap(tuple(found(toy, "rows", n_items=6).values()), "BPR").name == "user_embedding"
    assert found(toy, "encoder", n_items=6)["decoder.2"].is_scores
