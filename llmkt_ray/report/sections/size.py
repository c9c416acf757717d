"""The size of the target: what a reduction to d dimensions keeps of the embedding, and what arrives in the ranking."""

import math
from collections.abc import Sequence

from llmkt_ray.report.cells import claimed_at
from llmkt_ray.report.figures import charts
from llmkt_ray.report.figures.canvas import span
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.levels import Compared, Level, compared
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import MOST_PANELS, Figure, Section, Table, drawn_of, over, sample
from llmkt_ray.report.text import percent_interval, plain

MEASURES = {"reconstruction_r2": "held-out R2", "knn_overlap": "kNN overlap", "trustworthiness": "trustworthiness"}
"""Notes of the targets that are drawn, and what they are called; all at most 1, higher is better."""
LOOKS = ("treated", "template", "shuffled")


def size_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns fidelity and gain by embedding size; None where the study holds one size only."""
    found = compared(results, findings, "size")
    kept = _fidelity(results)
    sizes = {dims for by_dims in kept.values() for dims in by_dims}
    if not found and (len(sizes) < 2 or not _asked(results)):
        return None
    figures = [figure for (dataset, llm, reducer), by_dims in kept.items() if (figure := _kept(dataset, llm, reducer, by_dims)) is not None]
    contrasts = [level.gain for one in found for level in one.levels if level.gain is not None]
    gains = [figure for one in found if (figure := _gain(results, one)) is not None]
    rows = [
        (dataset, llm, reducer, str(dims), *(plain(values[m], 3) if m in values else "\u2013" for m in MEASURES))
        for (dataset, llm, reducer), by_dims in kept.items() for dims, values in sorted(by_dims.items())
    ]  # fmt: skip
    of_level = [
        (one.title, str(_dims(level)), plain(level.valid), plain(level.test), over(level.gain), str(level.cells))
        for one in found
        for level in one.levels
    ]
    at = claimed_at(results, (f.cell for f in findings))
    columns = ("dataset", "profiles", "reducer", "dims", *MEASURES.values())
    of_ranking = ("where", "dims", f"valid {results.metric}", f"test {results.metric}", "over alpha0 [95 %]", "cells")
    tables = (
        Table("Fidelity", columns, (False, False, False, *(True,) * 4), tuple(rows)),
        Table("Ranking", of_ranking, (False, *(True,) * 5), tuple(of_level)),
    )
    return Section(
        key="size",
        title="How many dimensions",
        short="Size",
        lead=(
            "What a target of d dimensions keeps of the profile's embedding, and whether keeping more of it helps the ranking. If fidelity "
            "rises and the gain does not, the ranking does not need the detail."
        ),
        caption=(
            "First panels: held-out R2 (share of the embedding's variance that a linear readout of the target explains on users it was "
            "not fitted on), kNN overlap (share of each user's 10 nearest neighbours that stay so) and trustworthiness; all at most 1, "
            "higher is better, one reduction each, no interval. Other panels: "
            f"{results.gain} of treated at {at} over alpha0, in % of alpha0, higher is better; band: 95 % "
            f"interval; mean over the other factors. Axis: dimensions, logarithmic. {sample(contrasts)}"
            + drawn_of(MOST_PANELS, max(len(figures), len(gains)), "panels of a kind", "the tables hold all")
        ),
        figures=(*figures[:MOST_PANELS], *gains[:MOST_PANELS]),
        tables=tuple(table for table in tables if table.rows),
    )


def _fidelity(results: Results) -> dict[tuple[str, str, str], dict[int, dict[str, float]]]:
    """Returns (dataset, profiles, reducer) to dims to the means of the measures over splits and encoders."""
    found: dict[tuple[str, str, str], dict[int, dict[str, list[float]]]] = {}
    for entry in results.card.get("targets", []):
        at = (str(entry.get("dataset")), str(entry.get("llm")), str(entry.get("reduction")))
        for name in MEASURES:
            value = (entry.get("notes") or {}).get(name)
            if isinstance(value, float | int) and isinstance(entry.get("dims"), int):
                found.setdefault(at, {}).setdefault(entry["dims"], {}).setdefault(name, []).append(float(value))
    return {
        at: {dims: {name: sum(values) / len(values) for name, values in by_name.items()} for dims, by_name in by_dims.items()}
        for at, by_dims in found.items()
    }


def _asked(results: Results) -> bool:
    """Says whether the study names sizes; with `dims: layer` the sizes are those of the layers, and no axis."""
    return any(isinstance(reduction.get("dims"), int) for reduction in results.study.get("reduction", []))


def _kept(dataset: str, llm: str, reducer: str, by_dims: dict[int, dict[str, float]]) -> Figure | None:
    if len(by_dims) < 2:
        return None
    lines, levels = [], []
    for look, (name, words) in zip(LOOKS, MEASURES.items(), strict=True):
        dots = tuple(
            charts.Dot(math.log2(dims), values[name], tip=f"{words} at {dims} dims: {plain(values[name], 3)}")
            for dims, values in sorted(by_dims.items()) if name in values
        )  # fmt: skip
        if dots:
            lines.append(charts.Series(look, dots))
            levels.append((words, look, dots[-1].y))
    if not lines:
        return None
    values = [d.y for line in lines for d in line.dots]
    axes = _axes(by_dims, span([0.0, 1.0, *values], 0.02), "fidelity")
    canvas = charts.curves(f"{reducer}, {llm}, {dataset}: fidelity by dimensions", lines, [], axes, ends=levels)
    return Figure(f"fidelity-{reducer}-{llm}-{dataset}", f"{reducer} on {dataset}", f"fidelity, {llm}", canvas)


def _gain(results: Results, one: Compared) -> Figure | None:
    dots = tuple(
        charts.Dot(
            math.log2(_dims(level)), r.estimate * 100, r.low * 100, r.high * 100,
            f"{_dims(level)} dims: {percent_interval(r)}",
        )
        for level in sorted(one.levels, key=lambda level: _dims(level))
        if level.gain is not None and (r := level.gain.relative) is not None
    )  # fmt: skip
    if len(dots) < 2:
        return None
    sizes = [_dims(level) for level in one.levels]
    axes = _axes(sizes, span([0.0, *(v for d in dots for v in (d.y, d.low, d.high))], 0.1), "gain, %", 1)
    zero = [charts.Level("no gain", "baseline", 0.0)]
    canvas = charts.curves(f"{one.title}: gain over alpha0 by dimensions, %", [charts.Series("treated", dots)], zero, axes)
    return Figure(f"size-{one.model}-{one.dataset}", one.title, f"gain in {results.metric} over alpha0, %", canvas)


def _axes(sizes: Sequence[int] | dict[int, dict[str, float]], y: tuple[float, float], name: str, digits: int = 2) -> charts.Axes:
    ticks = sorted(set(sizes))
    places = tuple(math.log2(dims) for dims in ticks)
    shown = tuple(at for place, at in enumerate(places) if place == 0 or at - places[place - 1] > 0.3)
    labels = tuple(str(round(2**at)) for at in shown)
    return charts.Axes((places[0] - 0.2, places[-1] + 0.2), y, "dimensions", name, digits, x_ticks=shown, x_labels=labels)


def _dims(level: Level) -> int:
    return int(float(str(level.values[0])))
