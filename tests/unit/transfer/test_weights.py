import pytest
import torch
from torch import nn

from llmkt_ray.errors import TrainingError
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.transfer.phases import PhasePlan
from llmkt_ray.transfer.weights import WeightsManager, frozen_parameters


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.user = nn.Embedding(4, 2)
        self.item = nn.Embedding(5, 2)
        self.step = 0


def managed(epochs=4, extra=(), one_phase=False, **schedule):
    torch.manual_seed(0)
    model = Model()
    plan = PhasePlan(ScheduleConfig(**schedule), epochs, one_phase=one_phase)
    return model, WeightsManager(model, plan, lambda p: torch.optim.Adam(p, lr=0.1), extra=extra)


def train(model, manager, steps=3):
    for _ in range(steps):
        manager.optimizer.zero_grad(set_to_none=True)
        loss = (model.user.weight.sum() - 1).square() + (model.item.weight.sum() - 2).square()
        loss.backward()
        manager.optimizer.step()
        model.step += 1


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_last_hands_over_the_last_epoch_of_phase_1():
    model, manager = managed(optimizer="keep")
    for epoch, value in ((1, 0.9), (2, 0.1)):
        manager.begin_epoch(epoch)
        train(model, manager)
        manager.observe(epoch, value)
    kept = weights_of(model)
    optimizer = manager.optimizer
    manager.begin_epoch(3)
    assert equal(weights_of(model), kept)
    assert manager.handed_over == 2
    assert manager.optimizer is optimizer


def test_trap_12_best_valid_restores_weights_optimizer_and_counters_of_one_epoch_together():
    model, manager = managed(epochs=6, handover="best_valid", optimizer="keep")
    kept = {}
    for epoch, value in ((1, 0.2), (2, 0.8), (3, 0.5)):
        manager.begin_epoch(epoch)
        train(model, manager)
        manager.observe(epoch, value)
        moments = [state["exp_avg"].clone() for state in manager.optimizer.state.values()]
        kept[epoch] = weights_of(model), model.step, moments
    manager.begin_epoch(4)
    assert manager.handed_over == 2
    assert equal(weights_of(model), kept[2][0])
    assert model.step == kept[2][1]
    restored = [state["exp_avg"] for state in manager.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(restored, kept[2][2], strict=True))


def test_trap_12_looking_at_a_validation_value_reloads_nothing():
    model, manager = managed(epochs=6, handover="best_valid")
    manager.begin_epoch(1)
    train(model, manager)
    manager.observe(1, 0.9)
    train(model, manager)
    kept = weights_of(model)
    manager.observe(2, 0.1)
    manager.begin_epoch(2)
    manager.begin_epoch(3)
    assert equal(weights_of(model), kept)


@pytest.mark.parametrize(("choice", "fresh"), [("keep", False), ("reset", True)])
def test_the_optimizer_is_kept_or_reset_as_asked(choice, fresh):
    model, manager = managed(optimizer=choice)
    manager.begin_epoch(1)
    train(model, manager)
    before = manager.optimizer
    manager.begin_epoch(2)
    assert manager.optimizer is before
    manager.begin_epoch(3)
    assert (manager.optimizer is not before) == fresh
    assert bool(manager.optimizer.state) != fresh


def test_a_baseline_and_a_joint_trial_have_no_hand_over():
    for arguments in ({"one_phase": True}, {"kind": "joint"}):
        model, manager = managed(handover="best_valid", **arguments)
        before = manager.optimizer
        for epoch in range(1, 5):
            manager.begin_epoch(epoch)
            train(model, manager)
            manager.observe(epoch, -epoch)
        assert manager.optimizer is before
        assert manager.handed_over == 0


def test_best_valid_without_a_validation_in_phase_1_is_refused():
    _, manager = managed(handover="best_valid")
    with pytest.raises(TrainingError, match="evaluate_every"):
        manager.begin_epoch(3)


def test_epochs_of_phase_2_are_never_handed_over():
    _, manager = managed(epochs=6, handover="best_valid")
    manager.observe(3, 0.1)
    manager.observe(4, 0.9)
    manager.begin_epoch(4)
    assert manager.handed_over == 3


def test_frozen_parameters_stay_in_their_phase_and_move_in_the_other():
    model, manager = managed(freeze={"phase1": ["item.*"], "phase2": ["user.*"]}, optimizer="keep")
    start = weights_of(model)
    manager.begin_epoch(1)
    train(model, manager)
    middle = weights_of(model)
    assert torch.equal(middle["item.weight"], start["item.weight"])
    assert not torch.equal(middle["user.weight"], start["user.weight"])
    manager.begin_epoch(3)
    train(model, manager)
    end = weights_of(model)
    assert torch.equal(end["user.weight"], middle["user.weight"])
    assert not torch.equal(end["item.weight"], middle["item.weight"])


def test_a_baseline_has_no_phases_and_freezes_nothing():
    model, manager = managed(freeze={"phase1": ["item.*"]}, one_phase=True)
    start = weights_of(model)
    manager.begin_epoch(1)
    train(model, manager)
    assert not torch.equal(model.item.weight, start["item.weight"])


def test_a_parameter_that_the_model_itself_froze_stays_frozen():
    model = Model()
    model.item.requires_grad_(False)
    manager = WeightsManager(model, PhasePlan(ScheduleConfig(), 4), lambda p: torch.optim.Adam(p, lr=0.1))
    manager.begin_epoch(1)
    assert not model.item.weight.requires_grad
    assert len(manager.optimizer.param_groups[0]["params"]) == 1


def test_a_pattern_without_a_parameter_and_one_that_freezes_all_are_refused():
    with pytest.raises(TrainingError, match=r"'items\*' of phase1 matches no parameter; parameters: item.weight, user.weight"):
        managed(freeze={"phase1": ["items*"]})
    with pytest.raises(TrainingError, match="nothing to train"):
        managed(freeze={"phase2": ["*"]})


def test_the_projection_is_trained_in_phase_1_and_dropped_in_phase_2():
    projection = nn.Parameter(torch.ones(2))
    model, manager = managed(extra=[projection], optimizer="keep")
    manager.begin_epoch(1)
    (projection.sum() * model.user.weight.sum()).backward()
    manager.optimizer.step()
    moved = projection.detach().clone()
    assert not torch.equal(moved, torch.ones(2))
    manager.begin_epoch(3)
    train(model, manager)
    assert torch.equal(projection, moved)


def test_a_resumed_manager_goes_on_exactly():
    projection = nn.Parameter(torch.ones(2))
    model, manager = managed(epochs=6, handover="best_valid", optimizer="keep", extra=[projection])
    for epoch, value in ((1, 0.8), (2, 0.3)):
        manager.begin_epoch(epoch)
        train(model, manager)
        manager.observe(epoch, value)
    other_projection = nn.Parameter(torch.zeros(2))
    other, resumed = managed(epochs=6, handover="best_valid", optimizer="keep", extra=[other_projection])
    other.load_state_dict(model.state_dict())
    other.step = model.step
    resumed.load_state_dict(manager.state_dict())
    for m, w in ((model, manager), (other, resumed)):
        for epoch in (3, 4):
            w.begin_epoch(epoch)
            train(m, w)
            w.observe(epoch, 0.1)
    assert equal(weights_of(model), weights_of(other))
    assert model.step == other.step
    assert manager.handed_over == resumed.handed_over == 1
    assert torch.equal(projection, other_projection)


def test_a_pattern_keeps_a_weight_fixed_whatever_stands_in_for_it():
    """`input_concat` joins profiles to the user table: a pattern that freezes the table of its twins freezes both of its parts."""
    names = ["item.weight", "user.parametrizations.weight.0.projection", "user.parametrizations.weight.original"]
    assert frozen_parameters(names, "phase1", ["user.weight"]) == frozen_parameters(names, "phase1", ["user.*"]) == set(names[1:])
    assert frozen_parameters(["item.weight", "user.weight"], "phase1", ["user.weight"]) == {"user.weight"}
    with pytest.raises(TrainingError, match=r"'usr\*' of phase2 matches no parameter; parameters: item\.weight, user\.weight$"):
        frozen_parameters(names, "phase2", ["usr*"])
