"""The report's charts: plain functions from numbers to a canvas, each one panel that is readable at the width of a phone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmkt_ray.report.figures.canvas import LETTER, Canvas, Scale, span
from llmkt_ray.report.figures.style import series
from llmkt_ray.report.text import MINUS, percent, plain, signed
from llmkt_ray.stats.interval import Interval

WIDTH = 360.0
MOST_LETTERS = 24
"""Letters of a row's label that there is room for; cut longer ones with `short`."""
ROW, HEADING = 26.0, 20.0
"""Height of a row, and of a heading above one."""


@dataclass(frozen=True)
class Bar:
    """One row of an interval chart.

    Attributes:
        label: what the row is.
        arm: whose colour and marker it has.
        interval: estimate and bounds, in the chart's unit.
        tip: text shown on hover.
        heading: name of the group of rows that begins here; empty for none.
    """

    label: str
    arm: str
    interval: Interval
    tip: str
    heading: str = ""


@dataclass(frozen=True)
class Dot:
    """A value at a position, with bounds where there are some."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    tip: str = ""


@dataclass(frozen=True)
class Series:
    """Dots of one arm, drawn as markers, joined by a line where `joined`; a band spans the bounds where they exist."""

    arm: str
    dots: tuple[Dot, ...]
    joined: bool = True
    markers: bool = True


@dataclass(frozen=True)
class Level:
    """A horizontal line: the value of an arm or a reference."""

    label: str
    arm: str
    value: float


@dataclass(frozen=True)
class Axes:
    """Ranges and names of a panel's axes; equal ranges make panels comparable.

    `x_labels` are the texts of `x_ticks`, where they are not the ticks themselves; `x_mark` is a vertical line with its name.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    x_name: str
    y_name: str
    y_digits: int = 3
    phase1: tuple[float, float] | None = None
    x_ticks: tuple[float, ...] = field(default=())
    x_labels: tuple[str, ...] = field(default=())
    x_mark: tuple[float, str] | None = None


def intervals(
    title: str, axis: str, bars: Sequence[Bar], reach: tuple[float, float], smallest: float | None, *, as_percent: bool, digits: int = 4
) -> Canvas:
    """Draws rows of estimates with their intervals on a shared axis with a line at 0.

    Args:
        title: of the panel.
        axis: what the axis shows, with its unit.
        bars: rows, top to bottom.
        reach: range of the axis; bounds beyond it are cut.
        smallest: smallest effect of interest, shaded around 0; None: no shading.
        as_percent: whether values are shares to be written as percent.
        digits: of values that are no shares.
    """
    left, right, top = _room([bar.label for bar in bars]), 288.0, 12.0
    places = [top + ROW * (row + 0.5) + HEADING * sum(bool(b.heading) for b in bars[: row + 1]) for row in range(len(bars))]
    bottom = places[-1] + ROW / 2
    shown = [f"{bar.heading} {bar.label} {_number(bar.interval.estimate, as_percent, digits)}".strip() for bar in bars]
    canvas = Canvas(WIDTH, bottom + 42, title, f"{title}: {'; '.join(shown)}.")
    canvas.text((left + right) / 2, bottom + 34, axis, anchor="middle")
    x = Scale(*reach, left, right)
    if smallest is not None:
        canvas.rect(x.clipped(-smallest), top - 4, x.clipped(smallest) - x.clipped(-smallest), bottom - top + 8, "small")
    for tick, name in x.named_ticks(6, lambda value: _tick(value * (100 if as_percent else 1))):
        canvas.line((x(tick), top - 4), (x(tick), bottom + 4), style="grid")
        canvas.text(x(tick), bottom + 18, name, anchor="middle")
    canvas.line((x(0), top - 4), (x(0), bottom + 4), style="zero")
    for y, bar in zip(places, bars, strict=True):
        if bar.heading:
            canvas.text(8, y - ROW / 2 - 3, bar.heading, "strong")
        colour, shape, _ = series(bar.arm)
        canvas.text(left - 10, y + 4, bar.label, "value", "end")
        low, high = x.clipped(bar.interval.low), x.clipped(bar.interval.high)
        canvas.line((low, y), (high, y), style=f"whisker-{colour}", tip=bar.tip)
        for bound, end in ((bar.interval.low, low), (bar.interval.high, high)):
            if reach[0] <= bound <= reach[1]:
                canvas.line((end, y - 4), (end, y + 4), style=f"whisker-{colour}")
        if reach[0] <= bar.interval.estimate <= reach[1]:
            canvas.marker(shape, x(bar.interval.estimate), y, f"mark-{colour}", bar.tip, 5)
        canvas.text(WIDTH - 4, y + 4, _number(bar.interval.estimate, as_percent, digits), "strong", "end")
    return canvas


def bars(title: str, axis: str, rows: Sequence[Bar], reach: tuple[float, float], digits: int = 4) -> Canvas:
    """Draws rows as bars from 0 with their intervals: parts that add up."""
    left, right, top = 118.0, 292.0, 12.0
    bottom = top + ROW * len(rows)
    shown = [f"{bar.label} {signed(bar.interval.estimate, digits)}" for bar in rows]
    canvas = Canvas(WIDTH, bottom + 42, title, f"{title}: {'; '.join(shown)}.")
    canvas.text((left + right) / 2, bottom + 34, axis, anchor="middle")
    x = Scale(*reach, left, right)
    for tick, name in x.named_ticks(5, lambda value: signed(value, 2 if abs(x.high - x.low) > 0.04 else 3) if value else "0"):
        canvas.line((x(tick), top - 4), (x(tick), bottom + 4), style="grid")
        canvas.text(x(tick), bottom + 18, name, anchor="middle")
    for row, bar in enumerate(rows):
        y = top + ROW * (row + 0.5)
        colour, _, _ = series(bar.arm)
        canvas.text(left - 10, y + 4, bar.label, "value", "end")
        width = x.clipped(bar.interval.estimate) - x(0)
        canvas.rect(x(0), y - 7, width, 14, f"bar-{colour}", bar.tip)
        canvas.line((x.clipped(bar.interval.low), y), (x.clipped(bar.interval.high), y), style=f"whisker-{colour}", tip=bar.tip)
        canvas.text(WIDTH - 4, y + 4, signed(bar.interval.estimate, digits), "strong", "end")
    canvas.line((x(0), top - 4), (x(0), bottom + 4), style="zero")
    return canvas


def curves(
    title: str,
    lines: Sequence[Series],
    levels: Sequence[Level],
    axes: Axes,
    height: float = 210.0,
    ends: Sequence[tuple[str, str, float]] = (),
) -> Canvas:
    """Draws series over x with bands, and levels as horizontal lines named at the right edge.

    `ends` names series at their right end where a legend of arms does not: (name, arm, value there).
    """
    left, right, top, bottom = 44.0, WIDTH - (92.0 if levels or ends else 10.0), 14.0, height - 36
    canvas = Canvas(WIDTH, height, title, _curves_summary(title, lines, levels, axes))
    x, y = Scale(*axes.x, left, right), Scale(*axes.y, bottom, top)
    if axes.phase1:
        canvas.rect(x.clipped(axes.phase1[0]), top, x.clipped(axes.phase1[1]) - x.clipped(axes.phase1[0]), bottom - top, "phase")
        canvas.text(x.clipped(axes.phase1[0]) + 4, top + 11, "phase 1", "label")
        canvas.text(x.clipped(axes.phase1[1]) + 4, top + 11, "phase 2", "label")
    for tick in y.ticks(4):
        canvas.line((left, y(tick)), (right, y(tick)), style="grid")
        name = f"{tick:.{axes.y_digits}f}".removeprefix("0") if 0 < abs(tick) < 1 else f"{tick:g}"
        canvas.text(left - 6, y(tick) + 4, name.replace("-", MINUS), anchor="end")
    given = axes.x_labels or [f"{tick:g}" for tick in axes.x_ticks]
    for tick, name in [*zip(axes.x_ticks, given, strict=True)] or x.named_ticks(5, lambda value: f"{value:g}"):
        canvas.line((x(tick), bottom), (x(tick), bottom + 4), style="axis")
        canvas.text(x(tick), bottom + 16, name, anchor="middle")
    if axes.x_mark is not None and axes.x[0] <= axes.x_mark[0] <= axes.x[1]:
        at, side = x(axes.x_mark[0]), "end" if x(axes.x_mark[0]) > (left + right) / 2 else "start"
        canvas.line((at, top), (at, bottom), style="rule")
        canvas.text(at + (-4 if side == "end" else 4), top + 9, axes.x_mark[1], anchor=side)
    canvas.line((left, bottom), (right, bottom), style="axis")
    canvas.text((left + right) / 2, height - 5, axes.x_name, anchor="middle")
    _draw_levels(canvas, levels, axes, y, left, right)
    places = _apart([y.clipped(value) + 4 for _, _, value in sorted(ends, key=lambda end: -end[2])], y.start + 6)
    for place, (name, _, _) in zip(places, sorted(ends, key=lambda end: -end[2]), strict=True):
        canvas.text(right + 7, place, name, "label")
    for one in lines:
        colour, shape, _ = series(one.arm)
        band = [d for d in one.dots if math.isfinite(d.low)]
        if one.joined and len(band) > 1:
            outline = [(x(d.x), y.clipped(d.high)) for d in band] + [(x(d.x), y.clipped(d.low)) for d in reversed(band)]
            canvas.line(*outline, style=f"band-{colour}", closed=True)
        else:
            for d in band:
                canvas.line((x(d.x), y.clipped(d.low)), (x(d.x), y.clipped(d.high)), style=f"whisker-{colour}", tip=d.tip)
        if one.joined:
            canvas.line(*((x(d.x), y.clipped(d.y)) for d in one.dots), style=f"line-{colour}")
        if one.markers:
            for d in one.dots:
                canvas.marker(shape, x(d.x), y.clipped(d.y), f"mark-{colour}", d.tip, 4.5)
    return canvas


def _draw_levels(canvas: Canvas, levels: Sequence[Level], axes: Axes, y: Scale, left: float, right: float) -> None:
    """Draws horizontal lines, their names kept apart; a level outside the range is named at the edge with its value."""
    names: list[tuple[float, str, str]] = []
    for level in sorted((level for level in levels if math.isfinite(level.value)), key=lambda level: -level.value):
        colour, _, _ = series(level.arm)
        style = f"{colour}-text" if colour in ("alpha0", "baseline", "reference") else "label"
        if axes.y[0] <= level.value <= axes.y[1]:
            canvas.line((left, y(level.value)), (right, y(level.value)), style=f"thin-{colour}", tip=f"{level.label} {plain(level.value)}")
            names.append((y(level.value) + 4, level.label, style))
        else:
            arrow = "\u2191" if level.value > axes.y[1] else "\u2193"
            names.append((y.clipped(level.value) + 4, f"{arrow} {level.label} {plain(level.value, 3).removeprefix('0')}", style))
    for place, (_, label, style) in zip(_apart([place for place, _, _ in names], y.start + 6), names, strict=True):
        canvas.text(right + 5, place, label, style)


def _apart(places: list[float], lowest: float) -> list[float]:
    """Moves the base lines of texts, top to bottom, until none covers another and the last is not below `lowest`."""
    for at in range(1, len(places)):
        places[at] = max(places[at], places[at - 1] + 12)
    for at in reversed(range(len(places))):
        places[at] = min(places[at], places[at + 1] - 12 if at + 1 < len(places) else lowest)
    return places


def dots(
    title: str,
    rows: Sequence[tuple[str, str, float, str]],
    reach: tuple[float, float],
    line: float | None,
    *,
    as_percent: bool = False,
    digits: int = 4,
) -> Canvas:
    """Draws one value a row: (label, arm, value, tip); `line` is a value to be marked through all rows, for example EASE's."""
    left, right, top, row_height = _room([label for label, *_ in rows]), 306.0, 10.0, 21.0
    bottom = top + row_height * len(rows)
    shown = "; ".join(f"{label} {_share(value) if as_percent else plain(value, digits)}" for label, _, value, _ in rows)
    canvas = Canvas(WIDTH, bottom + 30, title, f"{title}: {shown}.")
    x = Scale(*reach, left, right)

    def name_of(value: float) -> str:
        if not value:
            return "0"
        return f"{value * 100:g}".replace("-", MINUS) if as_percent else f"{value:.2f}".removeprefix("0") if digits > 1 else f"{value:g}"

    for tick, name in x.named_ticks(4, name_of):
        canvas.line((x(tick), top), (x(tick), bottom), style="grid")
        canvas.text(x(tick), bottom + 15, name, anchor="middle")
    if line is not None and reach[0] <= line <= reach[1]:
        canvas.line((x(line), top), (x(line), bottom), style="thin-reference")
    for row, (label, arm, value, tip) in enumerate(rows):
        y = top + row_height * (row + 0.5)
        colour, shape, _ = series(arm)
        canvas.text(left - 10, y + 4, label, "value", "end")
        canvas.line((x.clipped(0.0), y), (x.clipped(value), y), style=f"thin-{colour}")
        canvas.marker(shape, x.clipped(value), y, f"mark-{colour}", tip, 5)
        canvas.text(WIDTH - 4, y + 4, _share(value) if as_percent else plain(value, digits), "strong", "end")
    return canvas


def heat(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[int, int], tuple[float, str]],
    reach: float,
    links: Mapping[tuple[int, int], str] | None = None,
) -> Canvas:
    """Draws a table of shares as colours, white at 0 and full at +-`reach`.

    Args:
        title: of the figure.
        rows: names of the rows.
        columns: names of the columns.
        values: (row, column) to (value, tip).
        reach: value of the full colour.
        links: (row, column) to words that find its trials in the page's list.
    """
    letters = min(max(map(len, rows), default=0), 28)
    left, top, right = min(max(60.0, 12 + 5.9 * letters), WIDTH / 2), 10.0, WIDTH - 4
    width, height = (right - left) / max(len(columns), 1), 28.0
    bottom = top + height * len(rows)
    shown = "; ".join(f"{rows[r]} at {columns[c]} {percent(v)}" for (r, c), (v, _) in sorted(values.items())[:40])
    canvas = Canvas(WIDTH, bottom + 36, title, f"{title}: {shown}.")
    for r, name in enumerate(rows):
        canvas.text(left - 8, top + height * (r + 0.5) + 4, short(name, 28), "value", "end")
        for c in range(len(columns)):
            at, found = (left + width * c, top + height * r), values.get((r, c))
            if found is None:
                continue
            step = min(10, max(1, math.ceil(abs(found[0]) / reach * 10)))
            canvas.rect(
                at[0] + 1,
                at[1] + 1,
                width - 2,
                height - 2,
                f"{'heat' if found[0] >= 0 else 'cold'}-{step}",
                found[1],
                (links or {}).get((r, c), ""),
            )
            if width >= 34:
                style = "on-dark" if step > 8 else "value"
                canvas.text(at[0] + width / 2, at[1] + height / 2 + 4, signed(found[0] * 100, 1), style, "middle")
    every = max(1, math.ceil(26 / width))
    for c, name in enumerate(columns):
        if c % every == 0:
            canvas.text(left + width * (c + 0.5), bottom + 14, name, anchor="middle")
    canvas.text((left + right) / 2, bottom + 30, "alpha", anchor="middle")
    return canvas


def reach_of(values: Sequence[Interval], at_least: float, at_most: float) -> tuple[float, float]:
    """Returns an axis range around 0 that shows the intervals, cut at `at_most` times the largest estimate.

    So one very wide interval does not squeeze all others to a point.
    """
    if not values:
        return -at_least, at_least
    largest = max(max(abs(v.estimate) for v in values) * at_most, at_least)
    low = max(min(0.0, *(v.low for v in values)), -largest)
    high = min(max(0.0, *(v.high for v in values)), largest)
    return span([min(low, -at_least / 2), max(high, at_least / 2)], 0.06)


def _curves_summary(title: str, lines: Sequence[Series], levels: Sequence[Level], axes: Axes) -> str:
    parts = [f"{level.label} {plain(level.value)}" for level in levels if math.isfinite(level.value)]
    for one in lines:
        finite = [d for d in one.dots if math.isfinite(d.y)]
        if finite:
            best = max(finite, key=lambda d: d.y)
            parts.append(f"{one.arm} highest {plain(best.y)} at {axes.x_name} {best.x:g}")
    return f"{title}, {axes.y_name} by {axes.x_name}: {'; '.join(parts)}."


def _room(labels: Sequence[str]) -> float:
    """Returns where the plot begins so that the longest label fits, px; labels are cut by who makes them (`MOST_LETTERS`)."""
    return min(max(104.0, LETTER * max((len(label) for label in labels), default=0) + 16.0), LETTER * MOST_LETTERS + 16.0)


def _share(value: float) -> str:
    """Returns `5.4 %`: percent whose sign is written only where it is a minus."""
    return percent(value).removeprefix("+")


def _number(value: float, as_percent: bool, digits: int = 4) -> str:
    return percent(value) if as_percent else signed(value, digits)


def _tick(value: float) -> str:
    """Returns the name of a tick, with as many digits as it needs."""
    return f"{value:+g}".replace("-", MINUS) if value else "0"


def short(text: str, most: int) -> str:
    """Returns a text of at most `most` characters: both ends of a longer one."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}\u2026{text[half + 1 - most :]}"
