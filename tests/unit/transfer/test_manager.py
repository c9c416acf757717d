import copy
import gc
import math
from dataclasses import replace

import pytest
import torch

from llmkt_ray.errors import LayerError, TrainingError
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.transfer.discovery import discover_taps
from llmkt_ray.transfer.loss import LossManager, user_weights
from llmkt_ray.transfer.manager import TransferManager, TransferSetup
from llmkt_ray.transfer.phases import PhasePlan
from llmkt_ray.transfer.taps import named_tap
from llmkt_ray.transfer.weights import WeightsManager

EPOCHS, BATCHES = 4, 3


def setup_of(model, batch, name, *, alpha=0.5, dims=8, **choices):
    targets = torch.randn(model.n_users, dims, generator=torch.Generator().manual_seed(11))
    present = torch.ones(model.n_users, dtype=torch.bool)
    present[0] = False
    tap = named_tap(discover_taps(model, batch), name, "Toy")
    weights = user_weights(batch.users, model.n_users, present)
    return TransferSetup(tap, targets, weights, alpha, generator=torch.Generator().manual_seed(4), **choices)


def trial(toy, kind, name, *, alpha=0.5, plan=None, choices=None, balanced=False):
    """Trains a toy through its phases as the training loop does; returns what every arm can be compared by."""
    model, batch = toy(kind)
    plan = plan or PhasePlan(ScheduleConfig(), EPOCHS)
    setup = setup_of(model, batch, name, alpha=alpha, **(choices or {})) if alpha else None
    transfer = TransferManager(model, plan, setup)
    torch.manual_seed(9)
    if balanced:
        transfer.balance(((batch.loss(batch.users, False), batch.users) for _ in range(99)), setup.targets, setup.weights)
    weights = WeightsManager(model, plan, lambda p: torch.optim.Adam(p, lr=0.01), extra=transfer.parameters)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    rows, noise = [], []
    for epoch in range(1, plan.epochs + 1):
        weights.begin_epoch(epoch)
        torch.manual_seed(epoch)
        model.train()
        with transfer.epoch(epoch):
            for _ in range(BATCHES):
                weights.optimizer.zero_grad(set_to_none=True)
                transfer.backward(batch.loss(batch.users, False), batch.users)
                noise.append(torch.get_rng_state())
                weights.optimizer.step()
        rows.append(transfer.record())
        model.eval()
        with torch.no_grad():
            batch.loss(batch.users, False)
    transfer.check_computed()
    return {"model": model, "start": start, "rows": rows, "noise": noise, "transfer": transfer, "batch": batch, "setup": setup}


@pytest.mark.parametrize(
    ("kind", "name"), [("rows", "user_embedding"), ("prefix", "dropout"), ("graph", "layer"), ("encoder", "decoder:input")]
)
@pytest.mark.parametrize("projection", ["none", "student"])
def test_treated_and_alpha0_start_equal_and_draw_equal_random_numbers(toy, kind, name, projection):
    dims = 8 if projection == "none" else 4
    treated = trial(toy, kind, name, choices={"projection": projection, "dims": dims}, balanced=True)
    alpha0 = trial(toy, kind, name, alpha=0)
    assert all(torch.equal(treated["start"][n], alpha0["start"][n]) for n in alpha0["start"])
    assert all(torch.equal(a, b) for a, b in zip(treated["noise"], alpha0["noise"], strict=True))
    assert treated["rows"][0]["loss_model"] != alpha0["rows"][0]["loss_model"]


def test_the_first_step_of_treated_and_alpha0_sees_the_same_model_loss(toy):
    plan = PhasePlan(ScheduleConfig(), 2)
    losses = []
    for alpha in (0.0, 0.5):
        model, batch = toy("encoder")
        transfer = TransferManager(model, plan, setup_of(model, batch, "encoder.1", dims=10) if alpha else None)
        torch.manual_seed(3)
        with transfer.epoch(1):
            transfer.step(batch.loss(batch.users, False), batch.users)
        losses.append(transfer.record()["loss_model"])
    assert losses[0] == losses[1]


def test_the_loss_is_the_papers_formula_in_phase_1_and_the_models_own_in_phase_2(toy):
    model, batch = toy("rows")
    setup = setup_of(model, batch, "user_embedding", alpha=0.3)
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(), 2), setup)
    expected = ((model.user_embedding(batch.users) - setup.targets[batch.users]).square().mean(1) * setup.weights[batch.users]).mean()
    for epoch in (1, 2):
        with transfer.epoch(epoch):
            loss_model = batch.loss(batch.users, False)
            total = transfer.step(loss_model, batch.users)
        if epoch == 1:
            torch.testing.assert_close(total, 0.7 * loss_model + 0.3 * expected)
            assert transfer.record()["loss_transfer"] == pytest.approx(float(expected.detach()), rel=1e-6)
        else:
            assert total is loss_model
            assert math.isnan(transfer.record()["loss_transfer"])


def test_transfer_brings_the_tapped_rows_towards_the_targets_and_only_in_phase_1(toy):
    treated, alpha0 = trial(toy, "rows", "user_embedding", alpha=0.9), trial(toy, "rows", "user_embedding", alpha=0)
    users, setup = treated["batch"].users, treated["setup"]
    distance = {
        name: float((t["model"].user_embedding(users) - setup.targets[users]).square().mean())
        for name, t in (("treated", treated), ("alpha0", alpha0))
    }
    assert distance["treated"] < distance["alpha0"]
    assert treated["rows"][1]["loss_transfer"] < treated["rows"][0]["loss_transfer"]
    assert [math.isnan(row["loss_transfer"]) for row in treated["rows"]] == [False, False, True, True]
    assert treated["transfer"].transfer_steps == 2 * BATCHES


def test_trap_08_no_hook_is_there_outside_the_training_steps_of_phase_1(toy):
    model, batch = toy("graph")
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(), 2), setup_of(model, batch, "forward[0]"))
    assert "forward" not in vars(model)
    with transfer.epoch(1):
        assert "forward" in vars(model)
        transfer.step(batch.loss(batch.users, False), batch.users)
    assert "forward" not in vars(model)
    with transfer.epoch(2):
        assert "forward" not in vars(model)


def test_the_hook_is_gone_even_after_an_error_in_training(toy):
    model, batch = toy("rows")
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(), 2), setup_of(model, batch, "user_embedding"))
    with pytest.raises(ZeroDivisionError), transfer.epoch(1):
        raise ZeroDivisionError
    assert not model.user_embedding._forward_hooks


def test_memory_does_not_grow_with_epochs(toy):
    import gc

    plan = PhasePlan(ScheduleConfig(kind="joint"), 12)
    model, batch = toy("encoder")
    transfer = TransferManager(model, plan, setup_of(model, batch, "encoder.1", dims=10))
    counts = {}
    for epoch in range(1, 13):
        with transfer.epoch(epoch):
            for _ in range(3):
                transfer.backward(batch.loss(batch.users, False), batch.users)
        transfer.record()
        if epoch in (2, 12):
            gc.collect()
            counts[epoch] = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    assert counts[12] == counts[2]


def test_the_gradient_ratio_is_that_of_the_weighted_losses(toy):
    model, batch = toy("rows")
    setup = setup_of(model, batch, "user_embedding", alpha=0.25)
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(), 2), setup)
    with transfer.epoch(1):
        for _ in range(2):
            transfer.backward(batch.loss(batch.users, False), batch.users)
    rows = model.user_embedding(batch.users).detach().requires_grad_(True)
    items = model.item_embedding.weight.detach()
    place = torch.arange(9) * 3
    own = -torch.nn.functional.logsigmoid((rows * (items[place % 29] - items[(place % 29 + 11) % 29])).sum(1)).mean()
    theirs = torch.autograd.grad(0.75 * own, rows)[0]
    ours = 0.25 * 2 * (rows - setup.targets[batch.users]) * setup.weights[batch.users].unsqueeze(1) / (8 * 9)
    assert transfer.record()["gradient_ratio"] == pytest.approx(float(ours.norm() / theirs.norm()), rel=1e-4)


@pytest.mark.parametrize("kind", ["rows", "encoder"])
def test_balance_makes_the_losses_equal_in_size_at_initialisation_and_leaves_no_trace(toy, kind):
    model, batch = toy(kind)
    setup = setup_of(model, batch, "user_embedding" if kind == "rows" else "decoder:input")
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(), 2), setup)
    model.train()
    before = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    consumed, losses = [], []

    def batches():
        for index in range(99):
            consumed.append(index)
            loss = batch.loss(batch.users, False)
            losses.append(abs(float(loss.detach())))
            yield loss, batch.users

    beta = transfer.balance(batches(), setup.targets, setup.weights)
    assert len(consumed) == 10
    assert all(torch.equal(model.state_dict()[n], v) for n, v in before[0].items())
    assert torch.equal(torch.get_rng_state(), before[1])
    assert vars(model).get("update", 0) == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    if kind == "rows":
        h = model.user_embedding(batch.users)
        transferred = float(((h - setup.targets[batch.users]).square().mean(1) * setup.weights[batch.users]).mean())
        assert beta == pytest.approx(sum(losses) / 10 / transferred, rel=1e-5)


def test_balance_and_steps_of_a_sequence_read_the_lengths(toy):
    model, batch = toy("sequence")
    lengths = torch.tensor([1, 5, 2, 3, 4, 5, 1, 2, 3])
    setup = setup_of(model, batch, "item_embedding")
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(), 2), setup)
    transfer.balance(((batch.loss(batch.users, False), batch.users, lengths) for _ in range(3)), setup.targets, setup.weights)
    assert transfer.beta != 1.0
    with transfer.epoch(1):
        transfer.step(batch.loss(batch.users, False), batch.users, lengths)
    last = model.history(batch.users)[torch.arange(9), lengths - 1]
    expected = ((model.item_embedding(last) - setup.targets[batch.users]).square().mean(1) * setup.weights[batch.users]).mean()
    assert transfer.record()["loss_transfer"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_control_twin_shares_the_treated_arms_balance(toy):
    model, batch = toy("rows")
    treated = setup_of(model, batch, "user_embedding")
    fewer = treated.weights.clone()
    fewer[batch.users[:3]] = 0  # a twin whose texts cover other users
    twins = [
        TransferSetup(treated.tap, treated.targets * 7 + 3, treated.weights, treated.alpha),
        TransferSetup(treated.tap, treated.targets * 7 + 3, fewer, treated.alpha),
    ]
    betas = [
        TransferManager(model, PhasePlan(ScheduleConfig(), 2), setup).balance(batches(batch), treated.targets, treated.weights)
        for setup in (treated, *twins)
    ]
    assert betas[0] == betas[1] == betas[2] != 1.0


def batches(batch):
    for _ in range(3):
        yield batch.loss(batch.users, False), batch.users


@pytest.mark.parametrize(("scale", "expected"), [(1e-6, 1e3), (1e6, 1e-3)])
def test_beta_is_clamped(toy, scale, expected):
    model, batch = toy("rows")
    setup = setup_of(model, batch, "user_embedding")
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(), 2), setup)
    with torch.no_grad():
        model.user_embedding.weight.mul_(scale)
    assert transfer.balance(batches(batch), setup.targets * scale, setup.weights) == expected


def test_a_balance_of_infinite_losses_is_refused(toy):
    model, batch = toy("rows")
    setup = setup_of(model, batch, "user_embedding")
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(), 2), setup)
    with pytest.raises(TrainingError, match="finite losses"):
        transfer.balance(batches(batch), setup.targets * math.inf, setup.weights)
    with pytest.raises(TrainingError, match="0 batches"):
        transfer.balance(iter(()), setup.targets, setup.weights)


def test_trap_13_a_trial_whose_transfer_was_never_computed_fails(toy):
    model, batch = toy("rows")
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(), 2, one_phase=True), setup_of(model, batch, "user_embedding"))
    for epoch in (1, 2):
        with transfer.epoch(epoch):
            transfer.step(batch.loss(batch.users, False), batch.users)
    with pytest.raises(TrainingError, match=r"alpha is 0.5.*never computed"):
        transfer.check_computed()


@pytest.mark.parametrize("loss", ["infonce", "relational", "cka"])
def test_trap_13_a_loss_between_users_that_never_had_two_of_them_was_not_computed(toy, loss):
    model, batch = toy("rows")
    setup = setup_of(model, batch, "user_embedding")
    alone = torch.zeros_like(setup.weights)
    alone[batch.users[0]] = 1.0  # the only user with a profile
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(), 2), replace(setup, loss=loss, weights=alone))
    with transfer.epoch(1):
        transfer.backward(batch.loss(batch.users, False), batch.users)
    with pytest.raises(TrainingError, match="at least two users with a profile"):
        transfer.check_computed()


def test_without_transfer_every_method_works_and_nothing_is_claimed(toy):
    model, batch = toy("rows")
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(), 2), None)
    with transfer.epoch(1):
        loss = batch.loss(batch.users, False)
        assert transfer.step(loss, batch.users) is loss
    transfer.check_computed()
    assert transfer.beta == 1.0
    assert transfer.parameters == []
    assert math.isnan(transfer.record()["gradient_ratio"])


def test_trap_01_a_target_of_another_width_is_refused(toy):
    model, batch = toy("rows")
    with pytest.raises(LayerError, match="8 wide and the target 2"):
        TransferManager(model, PhasePlan(ScheduleConfig(), 2), setup_of(model, batch, "user_embedding", dims=2))


def test_only_the_student_side_is_learned(toy):
    done = trial(toy, "rows", "user_embedding", choices={"projection": "student", "dims": 4})
    fresh = setup_of(done["model"], done["batch"], "user_embedding", dims=4)
    assert torch.equal(done["setup"].targets, fresh.targets)
    start = TransferManager(
        done["model"],
        PhasePlan(ScheduleConfig(), 2),
        setup_of(done["model"], done["batch"], "user_embedding", dims=4, projection="student"),
    )
    assert not torch.equal(done["transfer"].projection.weight, start.projection.weight)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.1])
def test_alpha_outside_its_range_is_refused(toy, alpha):
    model, batch = toy("rows")
    with pytest.raises(TrainingError, match=r"\(0, 1\]"):
        TransferManager(model, PhasePlan(ScheduleConfig(), 2), setup_of(model, batch, "user_embedding", alpha=alpha))


def test_pretrain_leaves_the_models_own_loss_out(toy):
    done = trial(toy, "rows", "user_embedding", plan=PhasePlan(ScheduleConfig(kind="pretrain"), 2), alpha=0.3)
    model, batch = toy("rows")
    transfer = TransferManager(model, PhasePlan(ScheduleConfig(kind="pretrain"), 2), setup_of(model, batch, "user_embedding", alpha=0.3))
    with transfer.epoch(1):
        transfer.backward(batch.loss(batch.users, False), batch.users)
    assert model.item_embedding.weight.grad is None
    assert done["transfer"].transfer_steps == BATCHES


def test_state_comes_back(toy):
    done = trial(toy, "rows", "user_embedding", balanced=True)
    model, batch = toy("rows")
    other = TransferManager(model, PhasePlan(ScheduleConfig(), EPOCHS), setup_of(model, batch, "user_embedding"))
    other.load_state_dict(done["transfer"].state_dict())
    assert other.beta == done["transfer"].beta != 1.0
    assert other.transfer_steps == done["transfer"].transfer_steps


@pytest.mark.parametrize("loss", ["mse", "rmse"])
def test_squares_of_rows_and_of_a_small_user_table_have_the_value_and_gradient_of_the_loss(loss):
    """What light models compute: equal to the loss written plainly, whatever users and however often, absent ones without a share."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(9, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randn(9, 4, dtype=torch.float64, generator=generator)
    weights = torch.tensor([0, 1.0, 2, 0, 0.5, 1, 1, 3, 1], dtype=torch.float64)
    users = torch.tensor([1, 1, 7, 3, 8, 1, 4])
    manager = LossManager(loss, targets, weights)
    expected = manager.transfer(table[users], users)
    (gradient,) = torch.autograd.grad(expected, table)
    rows = manager.squares(table[users], users)
    torch.testing.assert_close(rows.value, expected.detach())
    torch.testing.assert_close(torch.zeros_like(table).index_add(0, users, rows.gradient(0.3)), 0.3 * gradient)
    assert manager.reads_tables(len(users)) is (loss == "mse")
    assert not manager.reads_tables(4), "a table that is larger than the batch is not read whole"
    if loss == "mse":
        whole, total = manager.table_squares(table, users), torch.ones_like(table)
        torch.testing.assert_close(whole.value, expected.detach())
        whole.add_gradient(total, 0.3)
        torch.testing.assert_close(total, 1 + 0.3 * gradient)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("choices", [{}, {"loss": "rmse"}, {"projection": "student", "dims": 4}, {"loss": "cosine"}])
@pytest.mark.parametrize(
    ("kind", "name"), [("rows", "user_embedding"), ("prefix", "dropout"), ("graph", "forward[0]"), ("sequence", "item_embedding")]
)
def test_backward_leaves_the_gradients_of_the_loss(toy, kind, name, choices, alpha):
    """Twice an epoch: the first step reads the hook, the second may read the table itself."""
    gradients, records = [], []
    for plainly in (True, False):
        model, batch = toy(kind)
        lengths = torch.tensor([1, 5, 2, 3, 4, 5, 1, 2, 3]) if kind == "sequence" else None
        transfer = TransferManager(model, PhasePlan(ScheduleConfig(kind="joint"), 2), setup_of(model, batch, name, alpha=alpha, **choices))
        model.eval()
        with transfer.epoch(1):
            for _ in range(2):
                if plainly:
                    transfer.step(batch.loss(batch.users, False), batch.users, lengths).backward()
                else:
                    transfer.backward(batch.loss(batch.users, False), batch.users, lengths)
        gradients.append([parameter.grad for parameter in [*model.parameters(), *transfer.parameters]])
        records.append(transfer.record())
    for plain, found in zip(*gradients, strict=True):
        assert (plain is None) == (found is None)
        if plain is not None:
            torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-7)
    assert records[1] == pytest.approx(records[0], rel=1e-5, nan_ok=True)


def test_the_epoch_with_the_shortcut_is_the_epoch_without_it(toy, monkeypatch):
    trials = []
    for whole in (True, False):
        monkeypatch.setattr(LossManager, "reads_tables", lambda self, rows, whole=whole: whole)
        trials.append(trial(toy, "rows", "user_embedding", balanced=True))
    one, other = (t["model"].state_dict() for t in trials)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)
    assert [r["loss_transfer"] for r in trials[0]["rows"]][:2] == pytest.approx(
        [r["loss_transfer"] for r in trials[1]["rows"]][:2], rel=1e-4
    )
    assert not trials[0]["transfer"]._hook.attached


@pytest.mark.parametrize(("kind", "name"), [("rows", "user_embedding"), ("encoder", "encoder.1"), ("graph", "layer")])
def test_no_tensor_is_left_behind_by_an_epoch(toy, kind, name):
    """Memory does not grow with epochs: as many tensors live after each as after the first; the published hook keeps them all (trap 8)."""
    model, batch = toy(kind)
    transfer = TransferManager(
        model, PhasePlan(ScheduleConfig(kind="joint"), 9), setup_of(model, batch, name, dims=10 if kind == "encoder" else 8)
    )
    optimizer = torch.optim.Adam(model.parameters())
    living = []
    for epoch in range(1, 6):
        with transfer.epoch(epoch):
            for _ in range(BATCHES):
                optimizer.zero_grad()
                transfer.backward(batch.loss(batch.users, False), batch.users)
                optimizer.step()
        transfer.record()
        gc.collect()
        living.append(sum(isinstance(value, torch.Tensor) for value in gc.get_objects()))
    assert living[1:] == [living[1]] * 4
