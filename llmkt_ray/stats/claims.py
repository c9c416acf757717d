"""Claims about one cell: what the intervals allow to say, and what forbids saying anything (METHOD.md, sections 3, 4 and 6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llmkt_ray.stats.contrast import Contrast
from llmkt_ray.stats.corrections import equivalence_p
from llmkt_ray.stats.interval import MIXED_FROM

Outcome = Literal["worth it", "works", "no effect", "hurts", "inconclusive", "no verdict"]
CLAIM_CONTROLS = ("alpha0", "shuffled", "template")
"""What the treated arm must beat, each of them: the intersection-union test needs no correction (Berger 1982)."""


@dataclass(frozen=True)
class Claim:
    """What can be said of one cell.

    Attributes:
        outcome: "works" (the lower bounds against all of `CLAIM_CONTROLS` are above 0), "worth it" (above the smallest effect of
            interest too), "no effect" (equivalent to alpha0 within it), "hurts" (the upper bound against alpha0 is below 0),
            "inconclusive", or "no verdict" where `blocks` or arms that have not converged forbid one.
        reasons: why, one sentence each.
    """

    outcome: Outcome
    reasons: tuple[str, ...]


def claim(
    contrasts: Mapping[str, Contrast], blocks: Sequence[str], smallest_effect: float, unfinished: Mapping[str, Sequence[str]] | None = None
) -> Claim:
    """Returns the claim that the contrasts of the treated arm with its controls support.

    Args:
        contrasts: control name to contrast, at the prespecified alpha.
        blocks: sentences that each forbid a verdict (no LLM, unknown certificate, not converged).
        smallest_effect: smallest effect of interest, relative, positive.
        unfinished: arm to sentences that it has not converged. A control that still rises forbids to say that treated beats it: with
            more epochs it might not. A treated arm that still rises forbids to say that it does harm or makes no difference.
    """
    missing = [name for name in CLAIM_CONTROLS if name not in contrasts]
    blocks = [*blocks, *(f"the control {name!r} was not run or did not finish at the prespecified alpha" for name in missing)]
    if blocks:
        return Claim("no verdict", tuple(blocks))
    needed = {name: contrasts[name] for name in CLAIM_CONTROLS}
    seeds = min(c.difference.n_seeds for c in needed.values())
    if seeds < MIXED_FROM:
        reason = (
            f"{seeds} seed{'s' if seeds > 1 else ''}: the intervals are conditional on these seeds; "
            f"at least {MIXED_FROM} are needed to speak of others"
        )
        return Claim("inconclusive", (reason,))
    if all(c.difference.low > 0 for c in needed.values()):
        rising = [sentence for name in CLAIM_CONTROLS for sentence in (unfinished or {}).get(name, ())]
        if rising:
            return Claim("no verdict", tuple(rising))
        lows = [c.relative.low for c in needed.values() if c.relative is not None]
        if len(lows) == len(needed) and min(lows) > smallest_effect:
            return Claim("worth it", (f"every lower bound is above the smallest effect of interest, {smallest_effect:.0%}",))
        return Claim("works", (f"every lower bound is above 0, but not every one is above {smallest_effect:.0%}",))
    alpha0 = needed["alpha0"]
    hurts = alpha0.difference.high < 0
    if hurts or (alpha0.relative is not None and equivalence_p(alpha0.relative, smallest_effect) <= 0.05):
        late = tuple((unfinished or {}).get("treated", ()))
        if late:
            return Claim("no verdict", late)
        if hurts:
            return Claim("hurts", ("treated is worse than alpha0: the whole interval is below 0",))
        return Claim("no effect", (f"equivalent to alpha0 within {smallest_effect:.0%} (two one-sided tests)",))
    short = [f"treated cannot be told apart from {name}" for name, c in needed.items() if c.difference.low <= 0 <= c.difference.high]
    short += [f"treated is worse than {name}" for name, c in needed.items() if c.difference.high < 0]
    return Claim("inconclusive", tuple(short))
