"""Taps: the named places of a model whose activation can learn from a profile, and which of them know the user.

A tap is found and classified by `llmkt_ray.transfer.discovery`, never by its position in a walk over modules
(METHOD.md, trap 6); here are its description, the order of candidates, and the choice by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmkt_ray.errors import LayerError, unknown_name
from llmkt_ray.transfer.sites import ROOT, Site

Alignment = Literal["user_rows", "user_prefix", "user_table", "user_item_table", "sequence", "pair", "none"]
MIN_WIDTH = 8
USER_ALIGNED: tuple[Alignment, ...] = ("user_rows", "user_prefix", "user_table", "user_item_table", "sequence")


@dataclass(frozen=True)
class Tap:
    """One place of a model, as a probe found it.

    Attributes:
        name: dotted name, `decoder:input`, `forward[1]`, `embedding@0`; see `llmkt_ray.transfer.sites`.
        alignment: how its rows belong to users:
            "user_rows": row i belongs to the user of batch row i;
            "user_prefix": the same for the first rows of the batch only (SimpleX);
            "user_table": row u is user u; "user_item_table": the same, items follow the users;
            "sequence": `(batch, positions, width)`, the last filled position is the user's;
            "pair": row i belongs to the user AND the item of batch row i;
            "none": it cannot be used, see `reason`.
        width: size of the last dimension (0 where there is none).
        shape: the activation's shape in the probe batch.
        usable: whether a transfer loss can be computed on it.
        reason: why it is not usable, or what to know about it; may be empty.
        calls: how often it fires in one training step; the FIRST call is the one that is read.
        depth: longest path from it to a parameter in the autograd graph: how much computation lies before it.
        ahead: longest path from the training loss down to it: how much computation lies after it; 0 if unused.
        batch_dim: the dimension that runs over the batch, 0 or 1.
        alias_of: name of the tap that holds the very same tensor and stands for both; empty: none.
        is_scores: as wide as the catalogue, give or take one: scores of all items, an output rather than a representation.
    """

    name: str
    alignment: Alignment
    width: int
    shape: tuple[int, ...] = ()
    usable: bool = True
    reason: str = ""
    calls: int = 1
    depth: int = 0
    ahead: int = 0
    batch_dim: int = 0
    alias_of: str = ""
    is_scores: bool = False

    @property
    def site(self) -> Site:
        """Where to read it."""
        return Site.parse(self.name)

    @property
    def knows_user(self) -> bool:
        """Whether its rows belong to users and to nothing else."""
        return self.usable and self.alignment in USER_ALIGNED


def candidates(taps: Sequence[Tap]) -> tuple[Tap, ...]:
    """Returns the user-aligned taps in forward order, each tensor once: "layer k" is the k-th, from 1."""
    return tuple(tap for tap in taps if tap.knows_user and not tap.alias_of and tap.width >= 2)


def auto_tap(taps: Sequence[Tap], model: str) -> Tap:
    """Returns the one user-aligned tap that `layers: auto` stands for.

    Scores of the whole catalogue never count. What does not look like a representation counts only where there is
    nothing else: fewer than 8 units (gates, weights), and what the model's own `forward` returns unless it is a table.
    Then come whole activations before single positions of one (fields of a context model). Of the rest: the narrowest,
    because that is where the model compresses the user; among equals the one with most computation before it, because
    that is the representation nearest to what is scored (for positions: with least, because fields are crossed further
    on); then the one with most computation after it, because the model can then best adapt to it; then the first.

    Raises:
        LayerError: no tap of the model knows the user.
    """
    aligned = candidates(taps)
    known = [tap for tap in aligned if not tap.is_scores]
    if aligned and not known:
        shown = ", ".join(f"{tap.name!r} ({tap.width})" for tap in aligned)
        raise LayerError(
            f"every user-aligned layer of {model} is as wide as the catalogue and so taken for scores of all items: {shown}; name the "
            "layer that is a representation under `transfer.layers`, or give the model another width"
        )
    if not known:
        raise LayerError(f"no layer of {model} is aligned with users; name a pair-level layer explicitly; run: llmkt layers {model}")

    def rank(tap: Tap) -> tuple[bool, bool, int, int, int]:
        site = tap.site
        odd = tap.width < MIN_WIDTH or (site.module == ROOT and tap.alignment not in ("user_table", "user_item_table"))
        positional = site.position is not None
        return (odd, positional, tap.width, tap.depth if positional else -tap.depth, -tap.ahead)

    return min(known, key=rank)


def named_tap(taps: Sequence[Tap], name: str, model: str) -> Tap:
    """Returns the tap that a user named: a tap's name, or "layer k" (also "k") for the k-th candidate.

    Raises:
        LayerError: there is no such tap, or it cannot be used; says why, and what there is instead.
    """
    hint = f"run: llmkt layers {model}"
    ordinal = name.strip().casefold().removeprefix("layer").strip()
    if ordinal.isdigit():
        ordered = candidates(taps)
        if not 1 <= int(ordinal) <= len(ordered):
            shown = ", ".join(f"{k} = {tap.name}" for k, tap in enumerate(ordered, 1)) or "none"
            raise LayerError(f"layer {int(ordinal)} of {model} does not exist: it has {len(ordered)} user-aligned layers ({shown}); {hint}")
        return ordered[int(ordinal) - 1]
    by_name = {tap.name: tap for tap in taps}
    if name not in by_name:
        useful = [tap.name for tap in taps if tap.usable] or list(by_name)
        raise LayerError(unknown_name(f"layer of {model}:", name, useful, hint))
    tap = by_name[name]
    if not tap.usable:
        shown = ", ".join(repr(t.name) for t in candidates(taps)) or "none"
        raise LayerError(f"layer {name!r} of {model} cannot be used: {tap.reason}; user-aligned layers: {shown}; {hint}")
    return tap
