import pytest

from llmkt_ray.errors import LayerError
from llmkt_ray.transfer.discovery import discover_taps
from llmkt_ray.transfer.taps import Tap, auto_tap, candidates, named_tap


def taps_of(toy, kind):
    return discover_taps(*toy(kind))


def test_candidates_are_user_aligned_each_tensor_once_in_forward_order(toy):
    assert [tap.name for tap in candidates(taps_of(toy, "encoder"))] == [
        "encoder.0", "encoder.1", "encoder.2", "norm:input", "norm", "decoder:input", "decoder.0", "decoder.1", "decoder.2", "forward[2]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("rows", "user_embedding"),
        ("prefix", "dropout"),
        ("graph", "forward[0]"),
        ("encoder", "decoder:input"),
        ("pair", "user_embedding"),
        ("sequence", "recurrent[0]"),
    ],
)
def test_auto_is_the_narrowest_then_the_deepest(toy, kind, name):
    assert auto_tap(taps_of(toy, kind), "Toy").name == name


def test_auto_prefers_a_representation_to_gates_and_a_whole_activation_to_a_position():
    gate, field, crossed = (
        Tap("gate", "user_rows", 3),
        Tap("fields@0", "user_rows", 10, depth=2),
        Tap("crossed@4", "user_rows", 10, depth=5),
    )
    tower = Tap("tower", "user_rows", 32, depth=4)
    assert auto_tap([gate, field, crossed, tower], "Toy") is tower
    assert auto_tap([gate, crossed, field], "Toy") is field
    assert auto_tap([gate], "Toy") is gate


def test_auto_never_takes_the_scores_or_an_element_of_forward_where_a_module_will_do():
    taps = [
        Tap("scores", "user_rows", 14, depth=9, is_scores=True),
        Tap("forward[1]", "user_rows", 12, depth=9),
        Tap("hidden", "user_rows", 18, depth=1),
    ]
    assert auto_tap(taps, "Toy").name == "hidden"
    assert auto_tap(taps[:2], "Toy").name == "forward[1]"


def test_auto_among_equals_takes_the_one_with_more_computation_after_it_then_the_first():
    shallow, long_way = Tap("mf", "user_rows", 8, depth=1, ahead=3), Tap("mlp", "user_rows", 8, depth=1, ahead=9)
    assert auto_tap([shallow, long_way], "Toy") is long_way
    twin = Tap("context", "user_rows", 8, depth=1, ahead=3)
    assert auto_tap([shallow, twin], "Toy") is shallow


@pytest.mark.parametrize("name", ["layer 2", "Layer 2", "2", "layer2"])
def test_layer_k_is_the_kth_candidate(toy, name):
    assert named_tap(taps_of(toy, "encoder"), name, "Toy").name == "encoder.1"


def test_a_model_with_fewer_layers_says_so(toy):
    with pytest.raises(LayerError, match=r"layer 4 of BPR does not exist: it has 1 user-aligned layers \(1 = user_embedding\)"):
        named_tap(taps_of(toy, "rows"), "layer 4", "BPR")


def test_trap_06_layers_are_names_and_a_wrong_one_offers_the_closest(toy):
    with pytest.raises(LayerError, match=r"did you mean 'user_embedding'.*run: llmkt layers BPR"):
        named_tap(taps_of(toy, "rows"), "user_embeding", "BPR")


def test_an_unusable_tap_is_refused_with_its_reason(toy):
    with pytest.raises(LayerError, match=r"integer-valued.*user-aligned layers: 'user_embedding'"):
        named_tap(taps_of(toy, "rows"), "user_embedding:input", "BPR")


def test_a_pair_level_tap_is_there_by_name_only(toy):
    taps = taps_of(toy, "pair")
    assert named_tap(taps, "network.0", "NeuMF").alignment == "pair"
    assert "network.0" not in {tap.name for tap in candidates(taps)}


def test_a_model_without_user_aligned_layers_says_so():
    with pytest.raises(LayerError, match="no layer of FM is aligned with users"):
        auto_tap([Tap("network.0", "pair", 4)], "FM")


def test_layers_that_are_all_as_wide_as_the_catalogue_are_named():
    taps = [Tap("user_embedding", "user_rows", 14, is_scores=True)]
    with pytest.raises(LayerError, match=r"every user-aligned layer of BPR is as wide as the catalogue .*: 'user_embedding' \(14\); name"):
        auto_tap(taps, "BPR")
