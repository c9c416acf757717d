import pytest
import torch
from torch import nn

from llmkt_ray.errors import LayerError
from llmkt_ray.transfer.sites import Site, pick, tensors_in, watch


@pytest.mark.parametrize("name", ["encoder.1", "decoder:input", "decoder:input[1]", "forward[1]", "forward[2][0]", "fields@3", "a.b[0]@2"])
def test_a_name_is_read_and_written_alike(name):
    assert Site.parse(name).name == name


def test_the_first_input_needs_no_number():
    assert Site.parse("decoder:input[0]") == Site.parse("decoder:input") == Site("decoder", True, (0,))


@pytest.mark.parametrize("name", ["", "a:output", "a[x]", "a@", "a@-1", "a[0", "@1"])
def test_a_name_outside_the_grammar_is_refused(name):
    with pytest.raises(LayerError, match="allowed"):
        Site.parse(name)


def test_tensors_are_found_in_nested_tuples_and_picked_by_their_path():
    a, b = torch.zeros(1), torch.ones(1)
    value = (a, [1, (b,)], {"c": a})
    assert [path for path, _ in tensors_in(value)] == [(0,), (1, 1, 0)]
    assert pick(value, (1, 1, 0)) is b
    assert pick(value, (1, 0)) is None
    assert pick(value, (7,)) is None


@pytest.mark.parametrize(("module", "is_input"), [("0", False), ("0", True), ("forward", False), ("forward", True)])
def test_a_watch_changes_nothing_and_leaves_no_trace(module, is_input):
    model = nn.Sequential(nn.Linear(3, 2))
    before = dict(vars(model))
    x = torch.rand(4, 3)
    plain = model.forward(x)
    seen = []
    remove = watch(model, module, is_input, seen.append)
    assert torch.equal(model.forward(x), plain)
    assert len(seen) == 1
    remove()
    model.forward(x)
    assert len(seen) == 1
    assert dict(vars(model)) == before
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


def test_forward_wrapped_twice_is_uncovered_in_reverse_order():
    model = nn.Sequential(nn.Linear(3, 2))
    first = watch(model, "forward", False, lambda value: None)
    second = watch(model, "forward", False, lambda value: None)
    with pytest.raises(LayerError, match="reverse order"):
        first()
    second()
    first()
    assert "forward" not in vars(model)


def test_an_unknown_module_is_refused_with_what_to_run():
    with pytest.raises(LayerError, match="llmkt layers Sequential"):
        watch(nn.Sequential(), "nothing.here", False, lambda value: None)
