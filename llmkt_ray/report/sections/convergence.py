"""How fast each arm converges: epochs to 95 % of alpha0's best, and the evidence on every cell that the diagnosis uses."""

from collections.abc import Sequence

import numpy as np

from llmkt_ray.report.evidence import GOAL, SPEED_ARMS, Evidence, evidence_of
from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import Figure, Section, Table, chosen, cut
from llmkt_ray.report.text import count, percent, plain


def convergence_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the speed of every arm; None without epochs."""
    found = [(f, e) for f in findings if (e := evidence_of(results, f.cell)) is not None]
    if not found:
        return None
    drawn = {f.cell.number for f in chosen([f for f, _ in found])}
    reach = (0.0, max((s.high for _, e in found for s in e.speed.values() if np.isfinite(s.high)), default=1.0) * 1.06)
    figures = []
    for finding, evidence in found:
        rows = [
            (arm, arm, evidence.speed[arm].mean, f"{arm}: {evidence.speed[arm].words} epochs, {count(evidence.speed[arm].trials, 'trial')}")
            for arm in SPEED_ARMS
            if arm in evidence.speed and np.isfinite(evidence.speed[arm].mean)
        ]
        if rows and finding.cell.number in drawn:
            title = f"{finding.cell.label}: epochs to {GOAL:.0%} of alpha0's best validation value"
            canvas = charts.dots(title, rows, reach, evidence.speed["alpha0"].mean, digits=1)
            figures.append(Figure(f"speed-{finding.cell.number}", finding.cell.title, finding.cell.detail, canvas, finding.cell.trials))
    slow = sum(e.slowness > 1.05 for _, e in found)
    fast = sum(e.slowness < 0.95 for _, e in found)
    trials = max(s.trials for _, e in found for s in e.speed.values())
    return Section(
        key="speed",
        title="How fast it converges",
        short="Speed",
        lead=(
            f"Treated is faster than alpha0 in {fast} of {count(len(found), 'cell')} and slower in {slow} (by more than 5 %). A gain "
            "that is only speed is gone where the baseline is trained to the end."
        ),
        caption=(
            f"Epochs until validation {results.metric} first reaches {GOAL:.0%} of alpha0's best of the same split and seed; left is "
            "faster, which is better. Marker: mean over the trials that reach it. Dotted line: alpha0. No interval; lowest and highest "
            f"trial and how many never arrive are in the table. n = {count(trials, 'trial')} an arm at the most.{cut(len(found))}"
        ),
        figures=tuple(figures),
        tables=(_speeds(found), _evidence(found)),
    )


def _speeds(found: Sequence[tuple[Finding, Evidence]]) -> Table:
    rows = [
        (
            f.cell.label, arm, speed.words, f"{speed.low:g} to {speed.high:g}" if np.isfinite(speed.low) else "\u2013", str(speed.never),
            str(speed.trials), _times(e.relative_speed(arm)),
        )
        for f, e in found for arm, speed in e.speed.items()
    ]  # fmt: skip
    columns = ("cell", "arm", f"epochs to {GOAL:.0%} of alpha0's best", "lowest to highest", "never", "trials", "relative to alpha0")
    return Table("Speed of every arm", columns, (False, False, *(True,) * 5), tuple(rows))


def _evidence(found: Sequence[tuple[Finding, Evidence]]) -> Table:
    rows = [
        (
            f.cell.label, plain(e.gradient_ratio, 2), percent(e.dip), plain(e.overlap, 2), plain(e.fidelity, 2), plain(e.duplicates, 2),
            plain(e.flagged, 2), plain(e.recall, 2), e.alignment or "unknown",
        )
        for f, e in found
    ]  # fmt: skip
    columns = (
        "cell", "gradient ratio in phase 1", "end of phase 1 against alpha0", "kNN overlap of the targets", "held-out R2 of the targets",
        "near-duplicate profiles", "flagged profiles", "genre recall of the profiles", "the tapped layer is aligned with",
    )  # fmt: skip
    return Table("What the diagnosis looks at", columns, (False, *(True,) * 7, False), tuple(rows))


def _times(value: float) -> str:
    return "never" if np.isinf(value) else f"\u00d7{value:.2f}" if np.isfinite(value) else "n/a"
