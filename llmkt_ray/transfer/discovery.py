"""Discovery of taps by probing: what fires in a training step, and what each activation knows.

One small batch is run through the model a few times: as it is, with some users replaced, with the target items
replaced. Which rows change says whose the rows are (METHOD.md, traps 6, 7 and 9). Nothing is trained, and the model
is left as it was.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from llmkt_ray.errors import LayerError
from llmkt_ray.transfer.lineage import depth_of, distances_from
from llmkt_ray.transfer.sites import ROOT, Site, is_traced, tensors_in, watch
from llmkt_ray.transfer.state import untouched
from llmkt_ray.transfer.taps import Tap

Positions = Literal["fields", "sequence", "history"]
PROBE_SEED = 20241101
_RELATIVE = 1e-6


class ProbeBatch(Protocol):
    """A training batch whose users and items can be replaced.

    Attributes:
        users: user id of every row, int64 `(batch,)`; the batch size differs from every size of the catalogue.
        positions: what runs along the second dimension of `(batch, positions, width)`: the "fields" of a row (context
            models), a "sequence" in order of time (sequential models), or an unordered "history".
        longest: positions of a history in order of time; 0 for models that read none.
        n_users, n_items: sizes of the model's id spaces, padding included.
    """

    users: Tensor
    positions: Positions
    longest: int
    n_users: int
    n_items: int

    def loss(self, users: Tensor, other_items: bool) -> Tensor:
        """Returns the model's training loss, a scalar.

        Args:
            users: user ids `(batch,)` instead of the batch's own, with what belongs to them (features, history);
                the target items stay.
            other_items: replace every target item (positives and negatives) by another, nothing else.
        """
        ...


@dataclass
class _Seen:
    """What a site showed in one run: its first tensor, and how often it fired."""

    first: Tensor
    order: int
    calls: int = 1


@dataclass(frozen=True)
class _Evidence:
    """Everything that the runs said about one site."""

    base: Tensor
    other_users: Tensor | None
    other_items: Tensor | None
    gradient: Tensor | None


def discover_taps(model: nn.Module, batch: ProbeBatch) -> tuple[Tap, ...]:
    """Returns every tap of a model in forward order, usable or not, each with its reason.

    Args:
        model: a freshly built model.
        batch: the probe batch.

    Raises:
        LayerError: the batch size equals a size of the catalogue, so that rows could not be told from tables.
    """
    size = len(batch.users)
    if size in (batch.n_users, batch.n_items, batch.n_users + batch.n_items) or size < 3:
        raise LayerError(f"a probe batch of {size} rows cannot be told from a table of users or items; take another odd size")
    users, changed = _other_users(batch.users, batch.n_users)
    with untouched(model, PROBE_SEED):
        # As in training (dropout on): what is the same tensor, what takes a gradient, how often it fires. Some models
        # prepare an epoch when they are put into training mode (SGL draws its graphs): every run starts from there.
        model.train()
        with untouched(model, PROBE_SEED):
            live, loss = _run(model, lambda: batch.loss(batch.users, False))
        kept = {}
        gradients: dict[Site, Tensor | None] = {}
        model.eval()
        for label, ids, other_items in (("base", batch.users, False), ("users", users, False), ("items", batch.users, True)):
            with untouched(model, PROBE_SEED):
                seen, value = _run(model, lambda ids=ids, other=other_items: batch.loss(ids, other))  # type: ignore[misc]
                if label == "base":
                    gradients = _gradients(value, seen)
                kept[label] = {site: found.first.detach() for site, found in seen.items()}
    live = _without_losses(live)
    taps: list[Tap] = []
    names, ahead = _canonical_names(live), distances_from(loss)
    for site, found in sorted(live.items(), key=lambda pair: pair[1].order):
        evidence = _Evidence(kept["base"].get(site, found.first), kept["users"].get(site), kept["items"].get(site), gradients.get(site))
        first = _classify(Tap(site.name, "none", 0, tuple(found.first.shape), calls=found.calls), found.first, evidence, changed, batch)
        for tap in first:
            owner = names[id(found.first)]
            alias = tap.name.replace(site.name, owner, 1) if owner != site.name else ""
            taps.append(
                replace(
                    tap,
                    alias_of=alias,
                    is_scores=abs(tap.width - batch.n_items) <= 1,  # without the padding, with it, or a mask's token beside it
                    depth=depth_of(found.first) if tap.usable else 0,
                    ahead=ahead.get(found.first.grad_fn, 0),
                )
            )
    return (*taps, *_silent(model, live))


def _other_users(users: Tensor, n_users: int) -> tuple[Tensor, Tensor]:
    """Replaces about half of the different users by ones that are not in the batch; returns ids and changed rows."""
    distinct = torch.unique(users)
    present = set(distinct.tolist())
    fresh = [u for u in range(n_users - 1, 0, -1) if u not in present]
    chosen = distinct[::2][: len(fresh)]
    if len(chosen) == 0:
        raise LayerError(f"a probe needs users outside its batch, but the batch holds all {n_users} of them; take a smaller batch")
    table = torch.arange(n_users, device=users.device)
    table[chosen] = torch.tensor(fresh[: len(chosen)], device=users.device)
    return table[users], torch.isin(users, chosen)


def _run(model: nn.Module, compute: Callable[[], Tensor]) -> tuple[dict[Site, _Seen], Tensor]:
    """Runs one training loss and returns what every site showed first."""
    seen: dict[Site, _Seen] = {}

    def looker(module: str, is_input: bool) -> Callable[[object], None]:
        def look(value: object) -> None:
            for path, tensor in tensors_in(value):
                site = Site(module, is_input, path)
                if site in seen:
                    seen[site].calls += 1
                else:
                    seen[site] = _Seen(tensor, len(seen))

        return look

    removers: list[Callable[[], None]] = []
    try:
        for name, _ in model.named_modules():
            if name:
                removers += [watch(model, name, True, looker(name, True)), watch(model, name, False, looker(name, False))]
        removers.append(watch(model, ROOT, False, looker(ROOT, False)))
        loss = compute()
    finally:
        for remove in reversed(removers):
            remove()
    return seen, loss


def _gradients(loss: Tensor, seen: dict[Site, _Seen]) -> dict[Site, Tensor | None]:
    """Returns the gradient of the loss at every activation that takes one."""
    traced = [(site, found.first) for site, found in seen.items() if is_traced(found.first)]
    if not traced or not loss.requires_grad:
        return {}
    values = torch.autograd.grad(loss, [tensor for _, tensor in traced], allow_unused=True)
    return {site: value for (site, _), value in zip(traced, values, strict=True)}


def _without_losses(seen: dict[Site, _Seen]) -> dict[Site, _Seen]:
    """Leaves out the inputs of modules that return nothing but single numbers: losses, whose inputs are read elsewhere."""
    sizes: dict[str, int] = {}
    for site, found in seen.items():
        if not site.is_input:
            sizes[site.module] = max(sizes.get(site.module, 0), found.first.numel())
    return {site: found for site, found in seen.items() if not site.is_input or sizes.get(site.module, 0) > 1}


def _canonical_names(seen: dict[Site, _Seen]) -> dict[int, str]:
    """Names each different tensor once: by the first module output that is it, else an input, else the model's forward."""
    ranked = sorted(seen.items(), key=lambda pair: (pair[0].module == ROOT, pair[0].is_input, pair[1].order))
    names: dict[int, str] = {}
    for site, found in ranked:
        names.setdefault(id(found.first), site.name)
    return names


def _classify(tap: Tap, live: Tensor, evidence: _Evidence, changed: Tensor, batch: ProbeBatch) -> Iterable[Tap]:
    """Returns the tap with what it is; a three-dimensional one may also yield one tap for each useful position."""
    tap = replace(tap, width=live.shape[-1] if live.ndim else 0)
    size = len(batch.users)
    if not torch.is_floating_point(live):
        return [_refused(tap, f"integer-valued ({str(live.dtype).removeprefix('torch.')}): no gradient can pass")]
    if not live.requires_grad:
        return [_refused(tap, "takes no gradient: no parameter lies before it")]
    if live.ndim < 2:
        return [_refused(tap, f"shape {tuple(live.shape)} has no row for each user")]
    if live.ndim > 3:
        return [_refused(tap, f"{live.ndim}-dimensional; two or three dimensions are needed")]
    if live.ndim == 2 and live.shape[0] in (batch.n_users, batch.n_users + batch.n_items):
        return [_table(tap, live, evidence.gradient, batch)]
    if evidence.other_users is None or evidence.other_items is None or evidence.other_users.shape != evidence.base.shape:
        return [_refused(tap, "its shape depends on which users are in the batch")]
    if live.ndim == 2:
        if live.shape[0] == batch.n_items:
            return [_refused(tap, "a table of items: it does not know the user")]
        if live.shape[0] > size:
            return [_refused(tap, f"{live.shape[0]} rows for a batch of {size}: not one for each row")]
        return [_rows(tap, evidence, 0, None, changed)]
    batch_dim = next((dim for dim in (0, 1) if live.shape[dim] == size), None)
    if batch_dim is None:
        return [_refused(tap, f"shape {tuple(live.shape)}: no dimension runs over the batch of {size}")]
    return _positions(replace(tap, batch_dim=batch_dim), evidence, changed, batch)


def _table(tap: Tap, live: Tensor, gradient: Tensor | None, batch: ProbeBatch) -> Tap:
    """Decides about something with one row for each user (and item): the loss must reach the rows of the batch's users.

    Most of them is enough: a unit that is switched off (ReLU) passes no gradient.
    """
    both = live.shape[0] == batch.n_users + batch.n_items
    if gradient is None:
        return _refused(tap, "the training loss does not use it")
    reached = (gradient != 0).any(dim=1).float()
    users = torch.unique(batch.users)
    if float(reached[users].mean()) > 0.5:
        return replace(tap, alignment="user_item_table" if both else "user_table")
    if both and float(reached[users + batch.n_items].mean()) > 0.5:
        return _refused(tap, "a table in which items come before users")
    return _refused(tap, "as long as the user table, but the loss does not reach the batch's users in it (a table of items?)")


def _rows(tap: Tap, evidence: _Evidence, dim: int, position: int | None, changed: Tensor) -> Tap:
    """Decides about rows: `(rows, width)`, or one position of something three-dimensional."""
    by_users = _changed_rows(evidence.base, evidence.other_users, dim, position)
    by_items = _changed_rows(evidence.base, evidence.other_items, dim, position)
    rows = len(by_users)
    expected = changed[:rows]
    if not bool(by_users.any()):
        return _refused(tap, "does not know the user: only the items change it" if bool(by_items.any()) else "the same for all users")
    if not torch.equal(by_users, expected):
        if bool((by_users & ~expected).any()):
            return _refused(tap, "a row changes with other users of the batch too: rows and users are not aligned")
        seen = f"{int(by_users.sum())} of {int(expected.sum())}"
        return _refused(tap, f"only {seen} replaced users change their row: it does not tell users apart")
    if bool(by_items.any()):
        return replace(tap, alignment="pair", reason="pair-level: depends on the item as well as on the user")
    return replace(tap, alignment="user_rows" if rows == len(changed) else "user_prefix")


def _positions(tap: Tap, evidence: _Evidence, changed: Tensor, batch: ProbeBatch) -> Iterable[Tap]:
    """Decides about `(batch, positions, width)`: the history of each user in order, or single positions of use."""
    count = evidence.base.shape[1 - tap.batch_dim]
    whole = _rows(tap, evidence, tap.batch_dim, None, changed)
    ordered = batch.positions == "sequence" and tap.batch_dim == 0 and count == batch.longest
    if whole.alignment == "user_rows" and count > 1 and ordered:
        return [replace(tap, alignment="sequence", reason="the last filled position of each row's history is read")]
    if count > 1 and batch.positions != "fields":
        return [_refused(tap, whole.reason or f"{count} positions a row, of which none in particular stands for the user")]
    single = [_rows(replace(tap, name=f"{tap.name}@{k}"), evidence, tap.batch_dim, k, changed) for k in range(count)]
    useful = [found for found in single if found.usable]
    if not useful:
        return [_refused(tap, whole.reason or f"none of its {count} positions is aligned with users")]
    shown = ", ".join(f"{found.name} ({'pair' if found.alignment == 'pair' else 'user'})" for found in useful[:8])
    return [_refused(tap, f"{count} positions a row; name one: {shown}{', ...' if len(useful) > 8 else ''}"), *useful]


def _changed_rows(base: Tensor, other: Tensor | None, dim: int, position: int | None) -> Tensor:
    """Says which rows differ by more than rounding, bool `(rows,)`."""
    assert other is not None
    difference = (base - other).abs()
    limit = float(base.abs().max()) * _RELATIVE
    if position is not None:
        difference = difference.select(1 - dim, position)
        dim = 0
    return (difference > limit).movedim(dim, 0).flatten(1).any(dim=1)


def _refused(tap: Tap, reason: str) -> Tap:
    return replace(tap, alignment="none", usable=False, reason=reason)


def _silent(model: nn.Module, seen: dict[Site, _Seen]) -> list[Tap]:
    """Returns a tap for every module that never fired, so that its name is known with its reason."""
    fired = {site.module for site in seen}
    return [
        Tap(name, "none", 0, usable=False, reason="never fires in a training step", calls=0)
        for name, _ in model.named_modules()
        if name and name not in fired
    ]
