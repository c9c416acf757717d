"""Cost against quality: what each configuration takes to train, what it reaches, and which ones nothing beats at both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmkt_ray.report.figures import charts
from llmkt_ray.report.figures.canvas import span
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import MOST_PANELS, Figure, Section, Table, legend
from llmkt_ray.report.text import plain


@dataclass(frozen=True)
class Point:
    """One configuration: an arm at an alpha of a cell, or a reference."""

    label: str
    arm: str
    cost: float
    valid: float
    test: float
    trials: int


def cost_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns cost against quality for every dataset, all models together, with the Pareto front."""
    if "cpu_s" not in results.trials:
        return None
    figures: list[Figure] = []
    rows: list[tuple[str, ...]] = []
    behind = 0
    for dataset in dict.fromkeys(str(f.cell.factors["dataset"]) for f in findings):
        points = _points(results, [f for f in findings if str(f.cell.factors["dataset"]) == dataset])
        if len(points) < 3:
            continue
        behind += sum(p.trials for p in points)
        front = pareto([p.cost for p in points], [results.sign() * p.valid for p in points])
        if len(figures) < MOST_PANELS:
            figures.append(_figure(results, dataset, points, front))
        best = sorted(range(len(points)), key=lambda at: points[at].cost)
        rows += [
            (dataset, points[at].label, f"{points[at].cost:.1f}", plain(points[at].valid), plain(points[at].test),
             "yes" if at in front else "no", str(points[at].trials))
            for at in best if at in front or len(points) <= 200
        ]  # fmt: skip
    if not figures:
        return None
    columns = ("dataset", "configuration", "CPU s a trial", f"valid {results.metric}", f"test {results.metric}", "on the front", "trials")
    return Section(
        key="cost",
        title="Cost against quality",
        short="Cost",
        lead=(
            "A configuration on the front (the line) is the best that its cost buys; one below it costs more than another that is as good. "
            + profile_cost(results)
        ),
        caption=(
            f"Mean validation {results.metric} ({results.direction}) against mean CPU seconds a trial (left is cheaper; logarithmic), one "
            "point an arm, alpha and cell; the front is taken on validation, test is in the table. Line: Pareto front. No intervals. n = "
            f"{behind:,} trials. CPU seconds are of the machines that ran them; writing "
            "and encoding profiles is not in them."
        ),
        figures=tuple(figures),
        legend=("front", *legend(findings), "reference"),
        tables=(Table("Configurations", columns, (False, False, True, True, True, False, True), tuple(rows)),),
    )


def pareto(costs: Sequence[float], values: Sequence[float]) -> set[int]:
    """Returns the places that no other beats at both: none is as cheap and better, or as good and cheaper."""
    front: set[int] = set()
    best = -np.inf
    for at in sorted(range(len(costs)), key=lambda place: (costs[place], -values[place])):
        if values[at] > best:
            front.add(at)
            best = values[at]
    return front


def profile_cost(results: Results) -> str:
    """Returns what the profiles took, in words, as far as the card holds it."""
    tokens = [
        sum(int(notes[name]) for name in ("prompt_tokens", "output_tokens") if isinstance(notes.get(name), int))
        for notes in ((entry.get("notes") or {}) for entry in results.card.get("profiles", []))
    ]
    money = [(entry.get("notes") or {}).get("cost") for entry in results.card.get("profiles", [])]
    paid = sum(float(value) for value in money if isinstance(value, float | int))
    if not sum(tokens):
        return "The card holds no tokens of the profiles: what writing them took is not known."
    return f"Profiles took {sum(tokens):,} tokens once, for all trials" + (f", at {paid:.2f} in the study's currency." if paid else ".")


def _points(results: Results, findings: Sequence[Finding]) -> list[Point]:
    made: dict[tuple[str, tuple[int, ...]], Point] = {}
    for finding in findings:
        cell = finding.cell
        arms = [(f"{arm}", runs) for arm, runs in cell.controls.items() if arm != "leaked"]
        for arm, runs in [*arms, *(("treated", runs) for runs in cell.treated.values())]:
            rows = tuple(runs.rows.values())
            words = f"{cell.label}, {arm}" + (f", alpha {runs.alpha:g}" if arm == "treated" else "")
            if arm in ("baseline", "alpha0"):  # shared by cells that differ in the transfer only
                words = f"{cell.title}, {arm}"
            made.setdefault((arm, rows), _point(results, words, arm, rows))
    dataset = str(findings[0].cell.factors["dataset"])
    mine = results.references[results.references["dataset"] == dataset]
    for name, part in mine.groupby("model"):
        rows = tuple(int(row) for row in part.index)
        made[str(name), rows] = _point(results, f"{name} on {dataset}", "reference", rows)
    return [p for p in made.values() if np.isfinite(p.cost) and p.cost > 0 and np.isfinite(p.valid)]


def _point(results: Results, label: str, arm: str, rows: tuple[int, ...]) -> Point:
    part = results.trials.iloc[list(rows)]
    valid, test = (float(part[f"{which}_{results.metric}"].mean()) for which in ("valid", "test"))
    return Point(label, arm, float(part["cpu_s"].astype(float).mean()), valid, test, len(rows))


def _figure(results: Results, dataset: str, points: Sequence[Point], front: set[int]) -> Figure:
    logs = [float(np.log10(p.cost)) for p in points]
    low, high = min(logs), max(logs)
    places = [k + shift for k in range(math.floor(low), math.ceil(high) + 1) for shift in (0.0, math.log10(3))]
    ticks = [at for at in places if low <= at <= high]
    if len(ticks) < 2:  # all cost about the same
        ticks = [low, high] if high > low else [low]
    ordered = sorted(front, key=lambda at: points[at].cost)
    line = charts.Series("front", tuple(charts.Dot(logs[at], points[at].valid) for at in ordered), markers=False)
    clouds = [
        charts.Series(arm, tuple(charts.Dot(logs[at], p.valid, tip=_tip(p)) for at, p in enumerate(points) if p.arm == arm), joined=False)
        for arm in dict.fromkeys(p.arm for p in points)
    ]
    axes = charts.Axes(
        (low - 0.1, high + 0.1), span([p.valid for p in points]), "CPU seconds a trial (logarithmic)", f"valid {results.metric}",
        x_ticks=tuple(ticks), x_labels=tuple(f"{10**at:.3g}" for at in ticks),
    )  # fmt: skip
    canvas = charts.curves(f"{dataset}: validation {results.metric} against cost", [line, *clouds], [], axes, 240)
    return Figure(f"cost-{dataset}", dataset, f"valid {results.metric} against CPU seconds", canvas)


def _tip(point: Point) -> str:
    return f"{point.label}: {point.cost:.3g} CPU s a trial, valid {plain(point.valid)}, test {plain(point.test)}"
