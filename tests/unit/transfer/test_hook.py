import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkt_ray.errors import LayerError
from llmkt_ray.transfer.discovery import discover_taps
from llmkt_ray.transfer.hook import HookManager
from llmkt_ray.transfer.taps import Tap, named_tap


def hooked(toy, kind, name, **sizes):
    model, batch = toy(kind, **sizes)
    return model, batch, HookManager(model, named_tap(discover_taps(model, batch), name, "Toy"))


@pytest.fixture(scope="module")
def hooks(toy):
    """Hooks on taps of every alignment, with the share of the batch's rows that each reads."""
    names = [
        ("rows", "user_embedding"),
        ("prefix", "user_embedding"),
        ("graph", "forward[0]"),
        ("graph", "layer"),
        ("pair", "fields@0"),
        ("pair", "attention@0"),
    ]
    return [(kind, name, 3 if kind == "prefix" else 1, *hooked(toy, kind, name)) for kind, name in names]


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(1, 17)), count=st.sampled_from([3, 6, 9, 12]))
def test_rows_belong_to_their_users_in_any_order(hooks, order, count):
    users = torch.tensor(order[:count])
    items = torch.arange(count)
    for kind, name, share, model, _, hook in hooks:
        taken = count // share
        model.eval()
        with hook:
            model.calculate_loss(users, items, items)
            h, rows = hook.take(users)
        assert torch.equal(rows, users[:taken])
        if kind != "graph":
            expected = model.user_embedding(rows)
        elif name == "layer":
            expected = model.layer(model.user_embedding(rows))
        else:
            expected = model.forward()[0][rows]
        torch.testing.assert_close(h, expected)


@pytest.mark.parametrize("name", ["encoder.1", "decoder:input", "forward[2]"])
def test_encoder_layers_inputs_and_elements_are_what_they_say(toy, name):
    model, batch, hook = hooked(toy, "encoder", name)
    model.eval()
    seen = {}
    model.encoder[1].register_forward_hook(lambda m, args, out: seen.update({"encoder.1": out}))
    model.decoder.register_forward_pre_hook(lambda m, args: seen.update({"decoder:input": args[0]}))
    model.encoder.register_forward_hook(lambda m, args, out: seen.update({"forward[2]": out[:, 8:]}))
    with hook:
        batch.loss(batch.users, False)
        h, rows = hook.take(batch.users)
    assert torch.equal(h, seen[name])
    assert torch.equal(rows, batch.users)


def test_a_sequence_gives_the_last_filled_position(toy):
    model, batch, hook = hooked(toy, "sequence", "item_embedding")
    lengths = torch.tensor([1, 5, 2, 3, 4, 5, 1, 2, 3])
    with hook:
        batch.loss(batch.users, False)
        h, _ = hook.take(batch.users, lengths)
    history = model.history(batch.users)
    last = history[torch.arange(9), lengths - 1]
    torch.testing.assert_close(h, model.item_embedding(last))


def test_a_sequence_without_lengths_is_refused(toy):
    _, batch, hook = hooked(toy, "sequence", "item_embedding")
    with hook:
        batch.loss(batch.users, False)
        with pytest.raises(LayerError, match="lengths"):
            hook.take(batch.users)


def test_trap_08_the_first_call_of_a_step_is_read_and_nothing_is_kept(toy):
    model, batch, _ = hooked(toy, "rows", "user_embedding")
    hook = HookManager(model, Tap("item_embedding", "user_rows", 8))
    users, items, negatives = batch.users, torch.arange(9), torch.arange(9) + 11
    with hook:
        for _ in range(3):
            model.calculate_loss(users, items, negatives)
            h, _ = hook.take(users)
            assert torch.equal(h, model.item_embedding.weight[items])
            with pytest.raises(LayerError, match="did not fire"):
                hook.take(users)


def test_trap_08_the_hook_does_not_fire_in_evaluation_and_is_gone_afterwards(toy):
    model, batch, hook = hooked(toy, "rows", "user_embedding")
    with hook:
        with torch.no_grad():
            batch.loss(batch.users, False)
        with pytest.raises(LayerError, match="did not fire"):
            hook.take(batch.users)
        assert len(model.user_embedding._forward_hooks) == 1
    assert not hook.attached
    assert len(model.user_embedding._forward_hooks) == 0
    batch.loss(batch.users, False)
    with pytest.raises(LayerError, match="did not fire"):
        hook.take(batch.users)


def test_the_hook_changes_no_loss_and_no_gradient(toy):
    for kind, name in (("rows", "user_embedding"), ("graph", "forward[0]"), ("encoder", "decoder:input")):
        model, batch, hook = hooked(toy, kind, name)
        model.eval()
        model.update = 0
        plain = batch.loss(batch.users, False)
        gradient = torch.autograd.grad(plain, list(model.parameters()), allow_unused=True)
        model.update = 0
        with hook:
            watched = batch.loss(batch.users, False)
            again = torch.autograd.grad(watched, list(model.parameters()), allow_unused=True)
        assert torch.equal(plain, watched)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(gradient, again, strict=True))


def test_trap_09_an_activation_without_gradient_is_refused(toy):
    model, batch, _ = hooked(toy, "rows", "user_embedding")
    with HookManager(model, Tap("user_embedding:input", "user_rows", 8)) as hook:
        batch.loss(batch.users, False)
        with pytest.raises(LayerError, match="integer-valued"):
            hook.take(batch.users)
    model.user_embedding.requires_grad_(False)
    with HookManager(model, Tap("user_embedding", "user_rows", 8)) as hook:
        batch.loss(batch.users, False)
        with pytest.raises(LayerError, match="takes no gradient"):
            hook.take(batch.users)


def test_a_tap_that_never_fires_is_refused(toy):
    model, batch, _ = hooked(toy, "rows", "user_embedding")
    with HookManager(model, Tap("unused", "user_rows", 3)) as hook:
        batch.loss(batch.users, False)
        with pytest.raises(LayerError, match="did not fire"):
            hook.take(batch.users)


def test_an_unusable_tap_and_attaching_twice_are_refused(toy):
    model, _, hook = hooked(toy, "rows", "user_embedding")
    with pytest.raises(LayerError, match="because"):
        HookManager(model, Tap("user_embedding", "none", 6, usable=False, reason="because"))
    with hook, pytest.raises(LayerError, match="attached already"):
        hook.attach()


def test_rows_that_do_not_fit_the_batch_are_refused(toy):
    _, batch, hook = hooked(toy, "rows", "user_embedding")
    with hook:
        batch.loss(batch.users, False)
        with pytest.raises(LayerError, match=r"shape \(9, 8\) for a batch of 8 rows"):
            hook.take(batch.users[:8])


@pytest.mark.parametrize(
    ("kind", "name"), [("rows", "user_embedding"), ("graph", "forward[0]"), ("encoder", "encoder.1"), ("pair", "fields@0")]
)
def test_gradient_norms_at_the_tap_equal_those_of_two_separate_backward_passes(toy, kind, name):
    model, batch, hook = hooked(toy, kind, name)
    model.eval()
    with hook:
        loss = batch.loss(batch.users, False)
        h, _ = hook.take(batch.users, measure=True)
        (0.7 * loss + 0.3 * h.square().sum()).backward()
    model.update = 0
    with hook:
        loss = batch.loss(batch.users, False)
        activation = hook._kept
        h, _ = hook.take(batch.users)
        ours = torch.autograd.grad(0.3 * h.square().sum(), activation, retain_graph=True)[0]
        theirs = torch.autograd.grad(0.7 * loss, activation)[0]
    torch.testing.assert_close(hook.gradient_norms[0], ours.norm())
    torch.testing.assert_close(hook.gradient_norms[1], theirs.norm(), rtol=1e-4, atol=1e-6)
