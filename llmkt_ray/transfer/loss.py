"""Transfer losses: how far the tapped rows are from the profiles' targets.

Every loss is a function `f(h, t, weight) -> scalar` of tapped rows h `(m, d)`, targets t `(m, d')` and weights
`(m,)` whose mean over the epoch is 1; no target ever receives a gradient. METHOD.md, section 5:

    mse         mean_i w_i mean_j (h_ij - t_ij)^2
    rmse        sqrt(mse + eps): the paper's form; eps keeps the gradient finite at an exact match (trap 10)
    rmse_plain  sqrt(mse), the published code's: NaN at an exact match; for `compat: upstream_2024`
    cosine      mean_i w_i (1 - cos(h_i, t_i))
    infonce     mean_i w_i CE over the batch's users of cos(h_i, t_j) / tau, tau 0.2 (van den Oord et al. 2018)
    relational  mean over pairs i != j, weighted w_i w_j, of (cos(h_i, h_j) - cos(t_i, t_j))^2 (after Park et al. 2019)
    cka         1 - linear CKA(h, t), weighted (Kornblith et al. 2019)

`infonce`, `relational` and `cka` compare users with each other: the rows of one user are averaged first, so that
nobody is their own negative; users without a profile take no part.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkt_ray.errors import LayerError, TrainingError, unknown_name
from llmkt_ray.transfer.squares import Squares, SquaresMaker

RMSE_EPS = 1e-8
CKA_EPS = 1e-16
"""Inside CKA's roots: keeps the gradient finite where all rows are equal."""
TAU = 0.2


def mse(h: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean squared error, in [0, inf), lower is better."""
    return torch.dot((h - t).square().mean(dim=1), weight) / len(weight)


def rmse(h: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Root of the weighted mean squared error plus eps, in [sqrt(eps), inf), lower is better."""
    return (mse(h, t, weight) + RMSE_EPS).sqrt()


def rmse_plain(h: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Root of the weighted mean squared error, in [0, inf), lower is better; its gradient is NaN where h equals t (trap 10)."""
    return mse(h, t, weight).sqrt()


def _with_direction(h: Tensor) -> Tensor:
    """Returns rows h as they are; those of zeros alone (a ReLU whose units are all off) take no gradient.

    They have no direction to be turned. Without this their gradient is that of a division by torch's eps, 1e8 to 1e12 times what it
    divides: a ReLU drops it again, but the gradient ratio is measured before.
    """
    return h * h.any(dim=1, keepdim=True)


def cosine(h: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of 1 - cosine similarity, in [0, 2], lower is better."""
    return torch.dot(1 - F.cosine_similarity(_with_direction(h), t, dim=1), weight) / len(weight)


def infonce(h: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Weighted cross-entropy of finding one's own target among the batch's, in [0, inf), lower is better."""
    logits = F.normalize(_with_direction(h), dim=1) @ F.normalize(t, dim=1).T / TAU
    own = torch.arange(len(h), device=h.device)
    return torch.dot(F.cross_entropy(logits, own, reduction="none"), weight) / len(weight)


def relational(h: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over pairs of squared differences of cosines, in [0, 4], lower is better."""
    h, t = F.normalize(_with_direction(h), dim=1), F.normalize(t, dim=1)
    pairs = torch.outer(weight, weight).fill_diagonal_(0)
    return ((h @ h.T - t @ t.T).square() * pairs).sum() / pairs.sum()


def cka(h: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """One minus linear CKA with weighted means, in [0, 1], lower is better."""
    share = (weight / weight.sum()).unsqueeze(1)
    h = (h - (share * h).sum(dim=0)) * share.sqrt()
    t = (t - (share * t).sum(dim=0)) * share.sqrt()
    cross, own, other = (h.T @ t).square().sum(), (h.T @ h).square().sum(), (t.T @ t).square().sum()
    return 1 - cross / ((own + CKA_EPS).sqrt() * (other + CKA_EPS).sqrt())


@dataclass(frozen=True)
class TransferLoss:
    """One loss and what it needs.

    Attributes:
        function: `f(h, t, weight) -> scalar`.
        equal_width: h and t must have the same width.
        between_users: compares users with each other, so it gets each user once and at least two of them.
    """

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    equal_width: bool = True
    between_users: bool = False


LOSSES: dict[str, TransferLoss] = {
    "mse": TransferLoss(mse),
    "rmse": TransferLoss(rmse),
    "rmse_plain": TransferLoss(rmse_plain),
    "cosine": TransferLoss(cosine),
    "infonce": TransferLoss(infonce, between_users=True),
    "relational": TransferLoss(relational, equal_width=False, between_users=True),
    "cka": TransferLoss(cka, equal_width=False, between_users=True),
}


def transfer_loss(name: str) -> TransferLoss:
    """Returns the loss of that name.

    Raises:
        TrainingError: there is none; lists the names.
    """
    if name not in LOSSES:
        raise TrainingError(unknown_name("transfer loss", name, LOSSES))
    return LOSSES[name]


def check_widths(loss: str, projection: str, layer: str, width: int, dims: int) -> None:
    """Refuses a tap and a target that cannot be compared.

    Args:
        loss: name of the loss.
        projection: "none", "student" or "legacy_slice".
        layer: the tap's name, for the message.
        width: width of the tap.
        dims: width of the target.

    Raises:
        LayerError: the widths differ and neither the loss nor the projection allows it (trap 1).
    """
    if projection == "legacy_slice" and width < dims:
        raise LayerError(f"legacy_slice keeps the first {dims} units of a layer, but {layer!r} has only {width}; choose dims <= {width}")
    if projection == "none" and transfer_loss(loss).equal_width and width != dims:
        free = ", ".join(repr(name) for name, kind in LOSSES.items() if not kind.equal_width)
        raise LayerError(
            f"layer {layer!r} is {width} wide and the target {dims}, but loss {loss!r} compares them unit by unit; "
            f"set reduction.dims to 'layer' or {width}, transfer.projection to 'student', or use a loss of {free}"
        )


def user_weights(row_users: Tensor, n_users: int, present: Tensor) -> Tensor:
    """Returns the weight of a row of each user: 1 / n_u, scaled so that the mean over the epoch's rows is 1.

    So the epoch's loss is the plain mean over users with a profile, and a user's expected weight does not depend on
    how active they are (METHOD.md, trap 11).

    Args:
        row_users: the user of every batch row of an epoch, int64 `(n,)`.
        n_users: number of user ids.
        present: bool `(n_users,)`: who has a profile; the others weigh 0.

    Returns:
        float32 `(n_users,)`; 0 for users without a training row or without a profile.

    Raises:
        TrainingError: no user has both.
    """
    counts = torch.bincount(row_users, minlength=n_users).to(torch.float64)
    taking_part = (counts > 0) & present
    if not bool(taking_part.any()):
        raise TrainingError(f"none of the {int(present.sum())} users with a profile has a training row: there is nothing to transfer")
    scale = counts.sum() / taking_part.sum()
    return torch.where(taking_part, scale / counts.clamp(min=1), 0.0).to(torch.float32)


def row_weights(row_users: Tensor, n_users: int, present: Tensor) -> Tensor:
    """Returns equal weights for all rows of users with a profile, mean 1 over the epoch's rows: what the published code does (trap 11).

    Takes and returns what `user_weights` does.

    Raises:
        TrainingError: no user has both.
    """
    counts = torch.bincount(row_users, minlength=n_users)
    taking_part = (counts > 0) & present
    if not bool(taking_part.any()):
        raise TrainingError(f"none of the {int(present.sum())} users with a profile has a training row: there is nothing to transfer")
    scale = counts.sum().to(torch.float64) / counts[taking_part].sum()
    return torch.where(taking_part, scale, 0.0).to(torch.float32)


WEIGHTS: dict[str, Callable[[Tensor, int, Tensor], Tensor]] = {"user": user_weights, "row": row_weights}
"""The values of `transfer.weights`."""


def one_row_each(h: Tensor, users: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Averages the rows of each user and adds up their weights; users of weight 0 are left out.

    Args:
        h: `(m, d)`.
        users: int64 `(m,)`.
        weight: `(m,)`.

    Returns:
        h `(k, d)`, users `(k,)` and weight `(k,)` of the k different users, scaled so that `weight.sum() / k` is what
        `weight.sum() / m` was.
    """
    distinct, place = torch.unique(users, return_inverse=True)
    count = torch.bincount(place, minlength=len(distinct))
    mean = h.new_zeros(len(distinct), h.shape[1]).index_add(0, place, h) / count.unsqueeze(1)
    total = weight.new_zeros(len(distinct)).index_add(0, place, weight)
    keep = total > 0
    kept = int(keep.sum())
    return mean[keep], distinct[keep], total[keep] * (kept / len(users))


_ROOT_EPS: dict[str, float | None] = {"mse": None, "rmse": RMSE_EPS}
"""Losses whose value and gradient are known in closed form, with the eps under the root."""


class LossManager:
    """Combines the model's loss with the transfer loss: L = (1 - alpha) L_model + alpha beta L_rec.

    Args:
        loss: name in `LOSSES`.
        targets: `(n_users, dims)`, in the model's user ids.
        weights: `(n_users,)` of `user_weights`; 0 where a user has no profile.
    """

    def __init__(self, loss: str, targets: Tensor, weights: Tensor) -> None:
        self._loss = transfer_loss(loss)
        self._name = loss
        self._squares = SquaresMaker(_ROOT_EPS[loss]) if loss in _ROOT_EPS else None
        self._targets = targets.detach()
        self._weights = weights.detach()
        self.beta = 1.0
        self.computed = True
        """Whether the last `transfer` compared anything: a loss between users needs two of them with a profile in the batch."""

    def transfer(self, h: Tensor, users: Tensor, of: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Returns the transfer loss L_rec of rows h `(m, d)` that belong to `users` `(m,)`; a scalar.

        `of` replaces the trial's own targets and weights (the balance of a control is measured against the treated arm's).
        """
        table, weights = (self._targets, self._weights) if of is None else of
        weight = weights.index_select(0, users)
        if self._name == "rmse_plain" and not bool(weight.any()):
            return h.sum() * 0  # the NaN of the plain root is for an exact match, not for a batch of users without a profile
        if self._loss.between_users:
            h, users, weight = one_row_each(h, users, weight)
            self.computed = len(users) >= 2
            if not self.computed:
                return h.sum() * 0
        return self._loss.function(h, table.detach().index_select(0, users), weight)

    @property
    def has_squares(self) -> bool:
        """Whether `squares` gives this loss."""
        return self._squares is not None

    def squares(self, h: Tensor, users: Tensor) -> Squares:
        """Returns what `transfer` gives, and its gradient, in closed form."""
        assert self._squares is not None
        return self._squares.make(h, self._targets, users, self._weights.index_select(0, users), len(users))

    def reads_tables(self, rows: int) -> bool:
        """Says whether `table_squares` gives this loss, and is cheaper than `squares` for a batch of so many rows."""
        return self._name == "mse" and len(self._targets) <= 2 * rows

    def table_squares(self, table: Tensor, users: Tensor) -> Squares:
        """Returns the mse of the rows `users` `(m,)` of a user table `(n_users, d)`, without gathering them.

        A user's rows are equal, so that their squares are the user's squares times their number.
        """
        assert self._squares is not None
        # Not bincount: on a GPU it would wait for the device in every step, to learn how long its result is.
        counts = torch.zeros_like(self._weights).index_add_(0, users, torch.ones_like(users, dtype=self._weights.dtype))
        return self._squares.make(table, self._targets, None, counts * self._weights, len(users))

    def row_norm(self, squares: Squares, share: float) -> Tensor:
        """Returns the norm of share times the gradient at the ROWS of the batch, of what `table_squares` gave; a scalar."""
        each = torch.dot(squares.weight * squares.length, self._weights * squares.length)
        return each.sqrt_().mul_(2 * squares.scale * share)

    def combine(self, loss_model: Tensor, loss_transfer: Tensor, alpha: float) -> Tensor:
        """Returns the loss to descend; at alpha 1 the model's own loss is left out altogether."""
        if alpha == 1.0:
            return self.beta * loss_transfer
        scaled = loss_transfer if self.beta == 1.0 else self.beta * loss_transfer
        # Some models (DiffRec) compute their loss in double precision; it stays what it is.
        return torch.lerp(loss_model, scaled.to(loss_model.dtype), alpha)
