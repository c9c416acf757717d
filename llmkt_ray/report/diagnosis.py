"""The three failure signatures, per cell, each from stated evidence and with its remedy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmkt_ray.report.evidence import GOAL, Evidence, evidence_of
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.text import count, listed, percent, percent_interval
from llmkt_ray.stats.contrast import Contrast

WEAK_RATIO, STRONG_RATIO = 0.05, 2.0
"""Gradient norm of the transfer relative to the model's at the tap: below, it cannot move the layer; above, it runs the phase."""
POOR_OVERLAP = 0.2
"""Share of the nearest neighbours of the profile embedding that the target keeps."""
DUPLICATES, FLAGGED, POOR_RECALL = 0.3, 0.2, 0.2
"""Shares of near-duplicate and of flagged profiles above which, and genre recall below which, profiles cannot tell users apart."""
DIP = 0.1
"""Relative loss of validation at the end of phase 1 against alpha0."""
NOT_THE_USERS = ("pair", "sequence")
"""Alignments of a tapped layer whose rows are not one user's alone."""
SLOW = 1.25
"""Epochs to 95 % of alpha0's best, relative to alpha0's own."""


@dataclass(frozen=True)
class Diagnosis:
    """One signature found in one cell.

    Attributes:
        cell: the cell's label.
        signature: "no gain", "degraded baseline" or "slow convergence".
        evidence: what was measured.
        cause: the likeliest cause by that evidence, or that the evidence names none.
        remedy: what to try next.
    """

    cell: str
    signature: str
    evidence: str
    cause: str
    remedy: str


def diagnose(results: Results, findings: Sequence[Finding]) -> tuple[Diagnosis, ...]:
    """Returns the signatures that the rows show, at the prespecified alpha."""
    made: list[Diagnosis] = []
    for finding in findings:
        found = evidence_of(results, finding.cell)
        if found is not None:
            made += _signatures(finding, found, results.smallest_effect)
    return tuple(made)


def _signatures(finding: Finding, found: Evidence, smallest: float) -> list[Diagnosis]:
    label, gain, made = finding.cell.label, finding.contrasts.get("alpha0"), []
    balanced = finding.cell.factors.get("balance") == "initial"
    if gain is not None and gain.relative is not None:
        conditions = f" ({listed(list(gain.conditions))})" if gain.conditions else ""
        said = f"{percent_interval(gain.relative)} over alpha0{conditions}"
        if gain.difference.high < 0:
            cause, remedy = _why_degraded(found, balanced)
            dip = f"; end of phase 1 {percent(found.dip)} against alpha0" if np.isfinite(found.dip) else ""
            made.append(Diagnosis(label, "degraded baseline", _joined(said + dip, found), cause, remedy))
        elif gain.relative.low <= 0:
            cause, remedy = why_no_gain(found, finding.contrasts.get("shuffled"), gain, smallest, balanced)
            made.append(Diagnosis(label, "no gain", _joined(said, found), cause, remedy))
    if found.slowness >= SLOW:
        cause, remedy = _why_slow(found, balanced)
        speed = {arm: one.words for arm, one in found.speed.items()}
        said = f"epochs to {GOAL:.0%} of alpha0's best validation value: treated {speed['treated']}, alpha0 {speed['alpha0']}"
        said += f", shuffled {speed['shuffled']}" if "shuffled" in speed else ""
        made.append(Diagnosis(label, "slow convergence", _joined(said, found), cause, remedy))
    return made


def _why_degraded(found: Evidence, balanced: bool) -> tuple[str, str]:
    if found.gradient_ratio > STRONG_RATIO:
        return (
            "overfitting to the pretext task: the transfer's gradient outweighs the model's",
            _or_balance("a smaller alpha, an earlier switch", balanced),
        )
    if found.dip < -DIP:
        return (
            "overfitting to the pretext task: phase 1 leaves the model worse than without transfer",
            "a smaller alpha, an earlier switch, or handover: best_valid",
        )
    return "the evidence names none", "a smaller alpha, another layer, and handover: best_valid"


def why_no_gain(found: Evidence, own: Contrast | None, gain: Contrast, smallest: float, balanced: bool = False) -> tuple[str, str]:
    """Returns the likeliest cause of a gain that is not there, and its remedy.

    Args:
        found: the evidence.
        own: treated against shuffled.
        gain: treated against alpha0.
        smallest: smallest effect of interest, relative.
        balanced: whether the losses are balanced already (`transfer.balance: initial`).
    """
    if found.gradient_ratio < WEAK_RATIO:
        return "weight: the transfer is too weak to move the layer", _or_balance("a larger alpha", balanced)
    poor = _poor_profiles(found)
    if poor:
        return f"profile quality: {poor}", "another prompt or LLM; look at the texts of a few users"
    if found.overlap < POOR_OVERLAP:
        return "profile quality: the reducer loses who is near whom", "more dims, pca instead of umap, or another encoder"
    if found.alignment in NOT_THE_USERS:
        return f"alignment: the tapped layer is not the user's alone ({found.alignment})", "a user-aligned layer: llmkt layers MODEL"
    if gain.relative is not None and gain.relative.high > smallest:
        return (
            f"not known yet: the interval also holds gains above {smallest:.0%}, so the study is too small to say that there is none",
            "more seeds (see the power statement) before anything else",
        )
    if own is not None and own.relative is not None and own.relative.low <= 0 <= own.relative.high:
        return (
            "alignment or content: another user's profile does as well",
            "look at the profiles' diversity and own-user retrieval; try another layer",
        )
    return "the evidence names none: the profiles may hold nothing that the interactions do not", "other profiles, or another layer"


def _or_balance(remedy: str, balanced: bool) -> str:
    """Returns a remedy of weight, with the balance of the losses where the study does not have it yet."""
    return remedy if balanced else f"{remedy}, or balance: initial"


def _why_slow(found: Evidence, balanced: bool) -> tuple[str, str]:
    if found.gradient_ratio > STRONG_RATIO:
        return "weight: the transfer's gradient outweighs the model's in phase 1", _or_balance("a smaller alpha", balanced)
    poor = _poor_profiles(found)
    if poor:
        return f"noisy embeddings: {poor}", "another prompt or LLM; a smaller alpha"
    if found.overlap < POOR_OVERLAP:
        return "noisy embeddings: the reducer loses who is near whom", "more dims, pca instead of umap, or another encoder"
    if found.alignment in NOT_THE_USERS:
        return f"misaligned: the tapped layer is not the user's alone ({found.alignment})", "a user-aligned layer: llmkt layers MODEL"
    if found.relative_speed("shuffled") >= SLOW:
        return (
            "noisy or misaligned embeddings: another user's profile slows it as much",
            "a smaller alpha; check the join of users and texts",
        )
    return "noisy or misaligned embeddings", "check the profiles and the kNN overlap; a smaller alpha; more epochs"


def _poor_profiles(found: Evidence) -> str:
    """Returns what is wrong with the profiles, empty where nothing is."""
    if found.duplicates > DUPLICATES:
        return f"{found.duplicates:.0%} of the profiles are near-duplicates"
    if found.flagged > FLAGGED:
        return f"{found.flagged:.0%} of the profiles are flagged (refused, truncated, echoed)"
    if found.recall < POOR_RECALL:
        return f"profiles name {found.recall:.0%} of what their users watch most"
    return ""


def _joined(said: str, found: Evidence) -> str:
    return f"{said}; {found.words}" if found.words else said


def summary(found: Sequence[Diagnosis], cells: int) -> str:
    """Returns one sentence on what was found."""
    if not found:
        return f"None of the three failure signatures (no gain, degraded baseline, slow convergence) shows in {count(cells, 'cell')}."
    kinds = {signature: sum(d.signature == signature for d in found) for signature in dict.fromkeys(d.signature for d in found)}
    return "Found: " + ", ".join(f"{signature} in {count(times, 'cell')}" for signature, times in kinds.items()) + "."
