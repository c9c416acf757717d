"""The three failure signatures, per cell, each from stated evidence and with its remedy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmkt_ray.report.cells import Runs
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.text import count, percent, percent_interval

WEAK_RATIO, STRONG_RATIO = 0.05, 2.0
"""Gradient norm of the transfer relative to the model's at the tap: below, it cannot move the layer; above, it runs the phase."""
POOR_OVERLAP = 0.2
"""Share of the nearest neighbours of the profile embedding that the target keeps."""
DIP = 0.1
"""Relative loss of validation at the end of phase 1 against alpha0."""
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
    column = f"valid_{results.metric}"
    if column not in results.epochs:
        return ()
    by_trial = results.epochs_by_trial
    made: list[Diagnosis] = []
    for finding in findings:
        treated = finding.cell.treated.get(finding.cell.claim_alpha)
        alpha0 = finding.cell.controls.get("alpha0")
        if treated is None or alpha0 is None:
            continue
        curves = {"treated": _mean_curve(results, by_trial, treated, column), "alpha0": _mean_curve(results, by_trial, alpha0, column)}
        if any(curve.empty for curve in curves.values()):
            continue
        ratio = _mean_ratio(results, by_trial, treated)
        made += _signatures(results, finding, curves, ratio, _phase1_end(results, by_trial, treated))
    return tuple(made)


def _signatures(results: Results, finding: Finding, curves: Mapping[str, pd.Series], ratio: float, switch: float | None) -> list[Diagnosis]:
    label, found = finding.cell.label, []
    gain = finding.contrasts.get("alpha0")
    dip = _dip(curves, switch)
    slow, epochs = _slowness(curves)
    overlap = _overlap(results, finding)
    known = [f"gradient ratio {ratio:.2g}" if np.isfinite(ratio) else "", f"kNN overlap {overlap:.2f}" if np.isfinite(overlap) else ""]
    shared = "; ".join(words for words in known if words)
    if gain is not None and gain.relative is not None and gain.difference.high < 0:
        cause, remedy = "the evidence names none", "try a smaller alpha, another layer, and best_valid as hand-over"
        if np.isfinite(ratio) and ratio > STRONG_RATIO:
            cause = "overfitting to the pretext task: the transfer's gradient outweighs the model's"
            remedy = "a smaller alpha, balance: initial, or an earlier switch"
        elif dip < -DIP:
            cause = "overfitting to the pretext task: phase 1 leaves the model worse than without transfer"
            remedy = "a smaller alpha, an earlier switch, or hand-over of the best validated weights"
        evidence = f"{percent_interval(gain.relative)} over alpha0; end of phase 1 {percent(dip)} against alpha0; {shared}"
        found.append(Diagnosis(label, "degraded baseline", evidence, cause, remedy))
    elif gain is not None and gain.relative is not None and gain.relative.low <= 0:
        cause, remedy = (
            "the evidence names none: the profiles may hold nothing that the interactions do not",
            "other profiles, another layer, more seeds",
        )
        own = finding.contrasts.get("shuffled")
        if np.isfinite(ratio) and ratio < WEAK_RATIO:
            cause, remedy = "weight: the transfer is too weak to move the layer", "a larger alpha, or balance: initial"
        elif np.isfinite(overlap) and overlap < POOR_OVERLAP:
            cause, remedy = "profile quality: the reducer loses who is near whom", "more dims, pca instead of umap, or another encoder"
        elif own is not None and own.relative is not None and own.relative.low <= 0 <= own.relative.high:
            cause = "alignment or content: another user's profile does as well"
            remedy = "look at the profiles' diversity and own-user retrieval; try a user-aligned layer"
        found.append(Diagnosis(label, "no gain", f"{percent_interval(gain.relative)} over alpha0; {shared}", cause, remedy))
    if slow is None or slow >= SLOW:
        reach = "never reaches" if slow is None else f"needs {epochs[0]:g} epochs instead of {epochs[1]:g} to reach"
        cause, remedy = "noisy or misaligned embeddings", "check the profiles and the kNN overlap; a smaller alpha; more epochs"
        if np.isfinite(ratio) and ratio > STRONG_RATIO:
            cause, remedy = "the transfer's gradient outweighs the model's in phase 1", "a smaller alpha or balance: initial"
        found.append(
            Diagnosis(label, "slow convergence", f"treated {reach} 95 % of alpha0's best validation value; {shared}", cause, remedy)
        )
    return found


def _mean_curve(results: Results, by_trial: Mapping[str, pd.DataFrame], runs: Runs, column: str) -> pd.Series:
    frames = [by_trial[key] for key in _keys(results, runs) if key in by_trial]
    if not frames:
        return pd.Series(dtype=float)
    return pd.concat(frames).dropna(subset=[column]).groupby("epoch")[column].mean()


def _mean_ratio(results: Results, by_trial: Mapping[str, pd.DataFrame], runs: Runs) -> float:
    values = [by_trial[key]["gradient_ratio"] for key in _keys(results, runs) if key in by_trial and "gradient_ratio" in by_trial[key]]
    return float(pd.concat(values).mean()) if values else float("nan")


def _phase1_end(results: Results, by_trial: Mapping[str, pd.DataFrame], runs: Runs) -> float | None:
    for key in _keys(results, runs):
        frame = by_trial.get(key)
        if frame is not None and frame["phase"].iloc[0] == 1 and (frame["phase"] == 2).any():
            return float(frame.loc[frame["phase"] == 1, "epoch"].max())
    return None


def _dip(curves: Mapping[str, pd.Series], switch: float | None) -> float:
    """Returns treated against alpha0 at the end of phase 1, relative; NaN where there is no such epoch."""
    if switch is None:
        return float("nan")
    both = [curve[curve.index <= switch] for curve in (curves["treated"], curves["alpha0"])]
    if any(curve.empty for curve in both) or both[1].iloc[-1] <= 0:
        return float("nan")
    return float(both[0].iloc[-1] / both[1].iloc[-1] - 1)


def _slowness(curves: Mapping[str, pd.Series]) -> tuple[float | None, tuple[float, float]]:
    """Returns epochs to 95 % of alpha0's best, treated relative to alpha0 (None: never), and both numbers."""
    goal = 0.95 * curves["alpha0"].max()
    first = {arm: curve[curve >= goal].index.min() for arm, curve in curves.items()}
    if pd.isna(first["treated"]):
        return None, (float("nan"), float(first["alpha0"]))
    return float(first["treated"] / first["alpha0"]), (float(first["treated"]), float(first["alpha0"]))


def _overlap(results: Results, finding: Finding) -> float:
    """Returns the mean kNN overlap of the targets that a cell was treated with, NaN where it was not measured."""
    runs = finding.cell.treated[finding.cell.claim_alpha]
    keys = set(results.trials["targets_key"].iloc[list(runs.rows.values())])
    values = [(t.get("notes") or {}).get("knn_overlap") for t in results.card.get("targets", []) if t.get("key") in keys]
    known = [float(value) for value in values if isinstance(value, float | int)]
    return float(np.mean(known)) if known else float("nan")


def _keys(results: Results, runs: Runs) -> list[str]:
    return [str(results.keys[row]) for row in runs.rows.values()]


def summary(found: Sequence[Diagnosis], cells: int) -> str:
    """Returns one sentence on what was found."""
    if not found:
        return f"None of the three failure signatures (no gain, degraded baseline, slow convergence) shows in {count(cells, 'cell')}."
    kinds = {signature: sum(d.signature == signature for d in found) for signature in dict.fromkeys(d.signature for d in found)}
    return "Found: " + ", ".join(f"{signature} in {count(times, 'cell')}" for signature, times in kinds.items()) + "."
