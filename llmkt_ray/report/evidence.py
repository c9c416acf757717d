"""What the diagnosis looks at, per cell: speed of convergence, phase 1, gradients, targets and profiles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from llmkt_ray.report.cells import Cell, Runs
from llmkt_ray.report.findings import alignments_of, profiles_of
from llmkt_ray.report.load import Results

GOAL = 0.95
"""Share of alpha0's best validation value that counts as converged."""
SPEED_ARMS = ("alpha0", "treated", "shuffled", "template", "baseline")


@dataclass(frozen=True)
class Speed:
    """Epochs that an arm needs to `GOAL` of alpha0's best validation value of the same split and seed.

    Attributes:
        mean, low, high: over the trials that reach it, epochs; NaN where none does.
        never: trials that never reach it.
        trials: trials that were looked at.
    """

    mean: float
    low: float
    high: float
    never: int
    trials: int

    @property
    def words(self) -> str:
        """The speed in words."""
        if self.never == self.trials:
            return f"never in {self.trials}"
        missing = f", never in {self.never} of {self.trials}" if self.never else ""
        return f"{self.mean:.3g}{missing}"


@dataclass(frozen=True)
class Evidence:
    """What is known of a cell at the prespecified alpha; NaN where it was not measured.

    Attributes:
        speed: arm to its speed.
        dip: treated against alpha0 on validation at the end of phase 1, relative.
        gradient_ratio: mean norm of the transfer's gradient over the model's at the tap, in phase 1.
        overlap: kNN overlap of the targets with the embeddings, in [0, 1].
        fidelity: held-out R2 of the embeddings from the targets, at most 1.
        duplicates: share of near-duplicate profiles, in [0, 1].
        flagged: share of profiles with a flag (refused, truncated, echo...), in [0, 1].
        recall: mean share of a user's most frequent genres that the profile names, in [0, 1].
        alignment: of the tapped layer, see `llmkt_ray.transfer.taps`; empty where it is not known.
    """

    speed: Mapping[str, Speed]
    dip: float
    gradient_ratio: float
    overlap: float
    fidelity: float
    duplicates: float
    flagged: float
    recall: float
    alignment: str

    @property
    def slowness(self) -> float:
        """Epochs of treated relative to those of alpha0; infinite where treated mostly never arrives, NaN where it is not known."""
        return self.relative_speed("treated")

    def relative_speed(self, arm: str) -> float:
        """Returns an arm's epochs relative to alpha0's; infinite where half its trials or more never arrive."""
        one, alpha0 = self.speed.get(arm), self.speed.get("alpha0")
        if one is None or alpha0 is None or not alpha0.mean > 0:
            return float("nan")
        return float("inf") if 2 * one.never >= one.trials else one.mean / alpha0.mean

    @property
    def words(self) -> str:
        """Everything that was measured, in words."""
        known = [
            (self.gradient_ratio, f"gradient ratio {self.gradient_ratio:.2g}"),
            (self.overlap, f"kNN overlap {self.overlap:.2f}"),
            (self.duplicates, f"near-duplicate profiles {self.duplicates:.0%}"),
            (self.flagged, f"flagged profiles {self.flagged:.0%}"),
            (self.recall, f"genre recall of the profiles {self.recall:.2f}"),
        ]
        return "; ".join(text for value, text in known if np.isfinite(value))


def evidence_of(results: Results, cell: Cell) -> Evidence | None:
    """Returns the evidence on a cell, None where treated or alpha0 has no epochs."""
    treated, alpha0 = cell.treated.get(cell.claim_alpha), cell.controls.get("alpha0")
    column = f"valid_{results.metric}"
    if treated is None or alpha0 is None or column not in results.epochs:
        return None
    by_trial = results.epochs_by_trial
    arms = {arm: runs for arm in SPEED_ARMS if (runs := cell.runs(arm, cell.claim_alpha)) is not None}
    speed = {arm: found for arm, runs in arms.items() if (found := _speed(results, by_trial, runs, alpha0, column)) is not None}
    if not {"treated", "alpha0"} <= set(speed):
        return None
    ratios = [by_trial[key]["gradient_ratio"] for key in _keys(results, treated) if key in by_trial and "gradient_ratio" in by_trial[key]]
    notes = _target_notes(results, treated)
    quality = [dict((entry.get("notes") or {}).get("quality") or {}) for entry in profiles_of(results, cell)]
    return Evidence(
        speed=speed,
        dip=_dip(results, by_trial, treated, alpha0, column),
        gradient_ratio=float(pd.concat(ratios).mean()) if ratios else float("nan"),
        overlap=_mean([note.get("knn_overlap") for note in notes]),
        fidelity=_mean([note.get("reconstruction_r2") for note in notes]),
        duplicates=_mean([one.get("near_duplicates") for one in quality]),
        flagged=_mean([one.get("flagged") for one in quality]),
        recall=_mean([(one.get("kinds") or {}).get("recall") for one in quality]),
        alignment=" and ".join(sorted(alignments_of(results, cell))),
    )


def _speed(results: Results, by_trial: Mapping[str, pd.DataFrame], runs: Runs, alpha0: Runs, column: str) -> Speed | None:
    epochs, never, sign = [], 0, results.sign()
    for at, row in runs.rows.items():
        mine = by_trial.get(str(results.keys[row]))
        base = by_trial.get(str(results.keys[alpha0.rows[at]])) if at in alpha0.rows else None
        if mine is None or base is None:
            continue
        is_there = mine[column] >= GOAL * base[column].max() if sign > 0 else mine[column] <= base[column].min() / GOAL
        there = mine.loc[is_there, "epoch"]
        if len(there):
            epochs.append(float(there.min()))
        else:
            never += 1
    if not epochs and not never:
        return None
    if not epochs:
        return Speed(float("nan"), float("nan"), float("nan"), never, never)
    return Speed(float(np.mean(epochs)), min(epochs), max(epochs), never, len(epochs) + never)


def _dip(results: Results, by_trial: Mapping[str, pd.DataFrame], treated: Runs, alpha0: Runs, column: str) -> float:
    """Returns treated against alpha0 at the last evaluated epoch of phase 1, mean over shared seeds; NaN without a phase 1."""
    dips = []
    for at in treated.rows.keys() & alpha0.rows.keys():
        frames = [by_trial.get(str(results.keys[runs.rows[at]])) for runs in (treated, alpha0)]
        ends = [_phase1_end(frame, column) for frame in frames if frame is not None]
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None and ends[1] > 0:
            dips.append(results.sign() * (ends[0] / ends[1] - 1))
    return float(np.mean(dips)) if dips else float("nan")


def _phase1_end(frame: pd.DataFrame, column: str) -> float | None:
    phase1 = frame[(frame["phase"] == 1) & frame[column].notna()]
    return float(phase1[column].iloc[-1]) if len(phase1) and (frame["phase"] == 2).any() and frame["phase"].iloc[0] == 1 else None


def _target_notes(results: Results, runs: Runs) -> list[Mapping[str, Any]]:
    keys = set(results.trials["targets_key"].iloc[list(runs.rows.values())])
    return [entry.get("notes") or {} for entry in results.card.get("targets", []) if entry.get("key") in keys]


def _mean(values: list[Any]) -> float:
    known = [float(value) for value in values if isinstance(value, float | int)]
    return float(np.mean(known)) if known else float("nan")


def _keys(results: Results, runs: Runs) -> list[str]:
    return [str(results.keys[row]) for row in runs.rows.values()]
