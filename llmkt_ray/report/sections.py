"""The page's figures with their tables: what is drawn, in which unit, which direction is better, from how many, and what a band means."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from llmkt_ray.report.cells import Cell, Runs, compare
from llmkt_ray.report.figures import charts
from llmkt_ray.report.figures.canvas import Canvas, span
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.text import count, listed, p_value, percent_interval, plain, value_interval
from llmkt_ray.stats.contrast import Contrast
from llmkt_ray.stats.interval import Interval

MOST_PANELS = 12
"""Panels of one kind that are drawn; the tables hold all."""


@dataclass(frozen=True)
class Table:
    """A table: column names, whether each is a number, and rows of text."""

    title: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """One panel with its heading."""

    name: str
    title: str
    detail: str
    canvas: Canvas


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        key: its anchor.
        title: a heading.
        lead: what the reader sees here and how to read it.
        caption: units, direction of better, n, and what bands mean.
        figures: panels.
        legend: arms named in a legend.
        tables: the numbers behind the figures.
    """

    key: str
    title: str
    lead: str
    caption: str = ""
    figures: tuple[Figure, ...] = ()
    legend: tuple[str, ...] = ()
    tables: tuple[Table, ...] = field(default=())


def chosen(findings: Sequence[Finding]) -> list[Finding]:
    """Returns the findings whose panels are drawn: all of them if they are few, else those with the largest effects, in their order."""
    if len(findings) <= MOST_PANELS:
        return list(findings)

    def size(finding: Finding) -> float:
        gain = finding.contrasts.get("alpha0")
        return abs(gain.relative.estimate) if gain is not None and gain.relative is not None else -1.0

    kept = {f.cell.number for f in sorted(findings, key=size, reverse=True)[:MOST_PANELS]}
    return [f for f in findings if f.cell.number in kept]


def sample(contrasts: Sequence[Contrast]) -> str:
    """Returns n in words: users, seeds and splits of the contrasts, and how their intervals were computed."""
    if not contrasts:
        return ""
    users = sorted({c.difference.n_users for c in contrasts})
    seeds = sorted({c.difference.n_seeds for c in contrasts})
    words = {
        "users": "t over users, conditional on these seeds",
        "mixed": "mixed model with crossed random seeds and users, seed-level degrees of freedom",
        "bootstrap": "crossed bootstrap over seeds and users",
        "splits": "t over splits",
    }
    methods = [words[m] for m in words if any(c.difference.method == m for c in contrasts)]
    one_split = all(c.n_splits == 1 for c in contrasts)
    return (
        f"n = {_range(users)} users, {_range(seeds)} {'seed' if seeds == [1] else 'seeds'}"
        f"{', one split' if one_split else ''}. Interval: 95 %, paired on users and seeds ({listed(methods)})"
        f"{'; conditional on one split' if one_split else ''}."
    )


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def gains(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the gains of the treated arm over each of its controls, at the prespecified alpha."""
    shown = [f for f in findings if f.contrasts]
    if not shown:
        return None
    every = [c for f in shown for c in f.contrasts.values()]
    reach = charts.reach_of([c.relative for c in every if c.relative is not None], 2 * results.smallest_effect, 1.8)
    figures = []
    for finding in chosen(shown):
        rows = [
            charts.Bar(f"over {arm}", arm, c.relative, f"treated over {arm}: {percent_interval(c.relative)}, p {p_value(c.difference.p)}")
            for arm, c in finding.contrasts.items()
            if c.relative is not None
        ]
        name = f"gain of treated at alpha {results.claim_alpha:g}, % of the control's {results.metric}"
        canvas = charts.intervals(f"{finding.cell.label}: {name}", rows, reach, results.smallest_effect, as_percent=True)
        figures.append(Figure(f"gains-{finding.cell.number}", finding.cell.title, finding.cell.detail, canvas))
    caption = (
        f"Gain in test {results.metric} of treated at alpha {results.claim_alpha:g} over each control, in % of the control; right of 0 is better. "
        f"Marker: mean. Line: 95 % interval. Grey: smaller than the smallest effect of interest ({results.smallest_effect:.0%}). {sample(every)}"
        f"{_cut(len(shown))}"
    )
    return Section(
        key="gains",
        title="Gains over each control",
        lead=(
            "A gain counts as the LLM's knowledge only if it beats every twin: alpha0 (the same two phases without transfer), "
            "shuffled (another user's profile) and template (the same history without an LLM)."
        ),
        caption=caption,
        figures=tuple(figures),
        tables=(_contrast_table(results, shown),),
    )


def _contrast_table(results: Results, findings: Sequence[Finding]) -> Table:
    rows = [
        (
            f.cell.label, arm, plain(c.mean_arm), plain(c.mean_control), value_interval(c.difference),
            percent_interval(c.relative) if c.relative else "n/a", p_value(c.difference.p), p_value(f.holm.get(arm, float("nan"))),
            f"{c.difference.n_seeds} \u00d7 {c.difference.n_users:,}", "; ".join(c.conditions) or "\u2013",
        )
        for f in findings for arm, c in f.contrasts.items()
    ]  # fmt: skip
    columns = (
        "cell", "control", "treated", "control mean", f"difference in {results.metric} [95 %]", "relative [95 %]", "p", "p (Holm)",
        "seeds \u00d7 users", "conditional on",
    )  # fmt: skip
    title = f"All planned contrasts, alpha {results.claim_alpha:g}"
    return Table(title, columns, (False, False, True, True, True, True, True, True, True, False), tuple(rows))


def attribution(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns where the gain comes from: differences of neighbouring arms, which add up."""
    shown = [f for f in findings if len(f.steps) >= 2]
    if not shown:
        return None
    every = [step.contrast for f in shown for step in f.steps if step.contrast is not None]
    reach = charts.reach_of([c.difference for c in every], 0.004, 1.8)
    arms = {"schedule": "alpha0", "regularisation": "shuffled", "own profile": "treated", "the LLM": "template", "in all": "baseline"}
    figures = []
    for finding in chosen(shown):
        rows = [
            charts.Bar(
                step.name,
                arms.get(step.name, "other"),
                step.contrast.difference,
                f"{step.meaning}: {value_interval(step.contrast.difference)}",
            )
            for step in finding.steps
            if step.contrast is not None
        ]
        canvas = charts.bars(f"{finding.cell.label}: parts of the gain in {results.metric}", rows, reach)
        figures.append(Figure(f"attribution-{finding.cell.number}", finding.cell.title, finding.cell.detail, canvas))
    rows_of_table = tuple(
        (f.cell.label, s.name, s.meaning, value_interval(s.contrast.difference), p_value(s.contrast.difference.p))
        for f in shown
        for s in f.steps
        if s.contrast is not None
    )
    return Section(
        key="attribution",
        title="Where the gain comes from",
        lead=(
            "schedule + regularisation + own profile = in all. What the LLM itself adds (treated \u2212 template) is part of the own profile, "
            "not one more term."
        ),
        caption=(
            f"Difference in test {results.metric} between two arms at alpha {results.claim_alpha:g}, in the metric's own unit; right of 0 is better. "
            f"Bar: mean. Line: 95 % interval. {sample(every)}{_cut(len(shown))}"
        ),
        figures=tuple(figures),
        tables=(
            Table(
                "The parts",
                ("cell", "part", "arms", f"difference in {results.metric} [95 %]", "p"),
                (False, False, False, True, True),
                rows_of_table,
            ),
        ),
    )


def alpha_curves(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the metric by alpha, with the lines it must beat."""
    shown = [f for f in findings if f.cell.treated]
    if not shown:
        return None
    figures, contrasts = [], []
    for finding in chosen(shown):
        cell = finding.cell
        treated = [(alpha, _mean(results, runs), finding.grid.get(alpha)) for alpha, runs in cell.treated.items()]
        contrasts += [c for _, _, c in treated if c is not None]
        dots = tuple(_dot(alpha, mean, c, f"treated, alpha {alpha:g}") for alpha, mean, c in treated)
        points = [
            charts.Series(
                arm, (_dot(runs.alpha, _mean(results, runs), compare(results, cell, runs.alpha, "alpha0", arm=arm), arm),), joined=False
            )
            for arm, runs in cell.controls.items()
            if arm not in ("baseline", "alpha0") and runs.alpha > 0
        ]
        arms = [charts.Level(arm, arm, finding.levels[arm]) for arm in ("alpha0", "baseline") if arm in finding.levels]
        references = [
            charts.Level(name, "reference", value)
            for name, value in finding.levels.items()
            if name not in cell.controls and name != "treated"
        ]
        drawn = [d for s in [*points, charts.Series("treated", dots)] for d in s.dots]
        values = [v for d in drawn for v in (d.y, d.low, d.high)] + [level.value for level in arms]
        axes = charts.Axes((0.0, 1.0), span(values, 0.12), "alpha", results.metric, phase1=None, x_ticks=(0, 0.25, 0.5, 0.75, 1))
        lines = [charts.Series("treated", dots, joined=len(dots) > 1), *points]
        canvas = charts.curves(f"{cell.label}: test {results.metric} by alpha", lines, [*arms, *references], axes)
        figures.append(Figure(f"alpha-{cell.number}", cell.title, cell.detail, canvas))
    return Section(
        key="alpha",
        title="How strong the transfer should be",
        lead=(
            "Alpha is the share of the transfer loss in phase 1. The alpha of the claim is set before the study; "
            "reading the best one off this figure would be choosing on test."
        ),
        caption=(
            f"Mean test {results.metric} over seeds and users, by alpha; higher is better. Band and bars: 95 % interval of the paired difference to alpha0, "
            f"drawn around the mean; where it holds the alpha0 line the two cannot be told apart. {sample(contrasts)}{_cut(len(shown))}"
        ),
        figures=tuple(figures),
        legend=_legend(findings, with_treated=True),
        tables=(_alpha_table(results, shown),),
    )


def _alpha_table(results: Results, findings: Sequence[Finding]) -> Table:
    rows = [
        (
            f.cell.label, f"{alpha:g}", plain(_mean(results, runs)), plain(_mean(results, runs, "valid")),
            percent_interval(c.relative) if (c := f.grid.get(alpha)) and c.relative else "n/a",
            p_value(f.grid_bh.get(alpha, float("nan"))), str(runs.seeds),
        )
        for f in findings for alpha, runs in f.cell.treated.items()
    ]  # fmt: skip
    columns = (
        "cell",
        "alpha",
        f"test {results.metric}",
        f"valid {results.metric}",
        "over alpha0 [95 %]",
        "p (Benjamini-Hochberg)",
        "seeds",
    )
    return Table("Every alpha", columns, (False, True, True, True, True, True, True), tuple(rows))


def training_curves(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the validation metric by epoch, and the transfer loss and gradient ratio of phase 1."""
    column = f"valid_{results.metric}"
    if not len(results.epochs) or column not in results.epochs:
        return None
    by_trial = {str(key): frame for key, frame in results.epochs.groupby("trial_key", sort=False)}
    figures = []
    for finding in chosen(findings):
        cell = finding.cell
        runs = {arm: cell.controls[arm] for arm in ("baseline", "alpha0", "shuffled", "template") if arm in cell.controls}
        if results.claim_alpha in cell.treated:
            runs["treated"] = cell.treated[results.claim_alpha]
        lines = [line for arm, r in runs.items() if (line := _by_epoch(results, by_trial, r, arm, column)) is not None]
        if not lines:
            continue
        last = max(d.x for line in lines for d in line.dots)
        switch = _switch(results, by_trial, runs)
        values = [v for line in lines for d in line.dots for v in (d.y, d.low, d.high)]
        axes = charts.Axes((0, last), span(values, 0.06), "epoch", f"valid {results.metric}", phase1=(0, switch) if switch else None)
        canvas = charts.curves(f"{cell.label}: validation {results.metric} by epoch", lines, [], axes)
        figures.append(Figure(f"training-{cell.number}", cell.title, cell.detail or f"validation {results.metric}", canvas))
        for extra, words in (("loss_transfer", "transfer loss"), ("gradient_ratio", "gradient ratio")):
            if extra not in results.epochs:
                continue
            lines = [line for arm, r in runs.items() if (line := _by_epoch(results, by_trial, r, arm, extra)) is not None]
            if lines:
                axes = charts.Axes((0, last), span([d.y for line in lines for d in line.dots] + [0.0]), "epoch", words, 2)
                canvas = charts.curves(f"{cell.label}: {words} by epoch", lines, [], axes, 150)
                figures.append(Figure(f"{extra}-{cell.number}", f"{cell.title}: {words}", cell.detail, canvas))
    if not figures:
        return None
    return Section(
        key="training",
        title="Training",
        lead="Validation after each evaluated epoch, and what the transfer does in phase 1. Test is opened once, after the last epoch.",
        caption=(
            f"Validation {results.metric} (higher is better), transfer loss (lower is closer to the target) and the ratio of the transfer's to the model's "
            "gradient norm at the tapped layer (about 1: both pull equally), by epoch. Line: mean over seeds. Band: from the lowest to the highest seed. "
            f"n = {count(max((r.seeds for f in findings for r in f.cell.treated.values()), default=0), 'seed')}.{_cut(len(findings))}"
        ),
        figures=tuple(figures),
        legend=_legend(findings, with_treated=True),
    )


def references(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the arms beside Pop, ItemKNN and EASE."""
    shown = [f for f in findings if f.levels]
    if not shown:
        return None
    reach = (0.0, max(v for f in shown for v in f.levels.values()) * 1.06)
    figures = []
    for finding in chosen(shown):
        arms = {*finding.cell.controls, "treated"}
        rows = [
            (name, name if name in arms else "reference", value, f"{name}: {plain(value)}")
            for name, value in sorted(finding.levels.items(), key=lambda pair: pair[1])
        ]
        canvas = charts.dots(
            f"{finding.cell.label}: test {results.metric} of every arm and reference", rows, reach, finding.levels.get("EASE")
        )
        figures.append(Figure(f"references-{finding.cell.number}", finding.cell.title, finding.cell.detail, canvas))
    has = [f for f in shown if "EASE" in f.levels]
    below = [f.cell.label for f in has if f.levels.get("treated", np.inf) < f.levels["EASE"]]
    lead = "No reference lines were run: nothing says whether these models are good ones."
    if has:
        lead = f"Below EASE even when treated: {listed(below[:6])}." if below else "Every treated model is at or above EASE."
    return Section(
        key="references",
        title="Against simple references",
        lead=lead,
        caption=(
            f"Mean test {results.metric}, higher is better; treated and its controls at alpha {results.claim_alpha:g}, means over seeds and users. "
            f"Dotted line: EASE. References have one deterministic run a split; no intervals are drawn here.{_cut(len(shown))}"
        ),
        figures=tuple(figures),
    )


def other_metrics(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the gain over alpha0 in every metric of the study."""
    cells = chosen([f for f in findings if f.contrasts])
    if not cells or len(results.metrics) < 2:
        return None
    rows = []
    for finding in cells:
        for metric in results.metrics:
            found = {arm: compare(results, finding.cell, results.claim_alpha, arm, metric) for arm in ("alpha0", "shuffled", "template")}
            if found["alpha0"] is None:
                continue
            cells_of_row = [percent_interval(c.relative) if c is not None and c.relative is not None else "\u2013" for c in found.values()]
            rows.append((finding.cell.label, metric, plain(found["alpha0"].mean_arm), *cells_of_row))
    table = Table(
        "All metrics", ("cell", "metric", "treated", "over alpha0 [95 %]", "over shuffled [95 %]", "over template [95 %]"),
        (False, False, True, True, True, True), tuple(rows),
    )  # fmt: skip
    lead = f"The claim rests on {results.metric}, which was chosen before the study; the others show whether it stands alone."
    return Section("metrics", "Other metrics", lead, tables=(table,))


def _by_epoch(results: Results, by_trial: dict[str, pd.DataFrame], runs: Runs, arm: str, column: str) -> charts.Series | None:
    keys = [results.trials["trial_key"].iloc[row] for row in runs.rows.values()]
    frames = [by_trial[key][["epoch", column]] for key in keys if key in by_trial]
    if not frames:
        return None
    table = pd.concat(frames).dropna().groupby("epoch")[column].agg(["mean", "min", "max"])
    if table.empty:
        return None
    return charts.Series(
        arm, tuple(charts.Dot(float(e), *map(float, row)) for e, row in zip(table.index, table.to_numpy(), strict=True)), markers=False
    )


def _switch(results: Results, by_trial: dict[str, pd.DataFrame], runs: dict[str, Runs]) -> float | None:
    """Returns the last epoch of phase 1, None where the arms have one phase only."""
    for arm in ("treated", "alpha0", "shuffled"):
        for row in runs[arm].rows.values() if arm in runs else ():
            frame = by_trial.get(results.trials["trial_key"].iloc[row])
            if frame is not None and {1, 2} <= set(frame["phase"]) and frame["phase"].iloc[0] == 1:
                return float(frame.loc[frame["phase"] == 1, "epoch"].max())
    return None


def _dot(x: float, mean: float, c: Contrast | None, words: str) -> charts.Dot:
    if c is None:
        return charts.Dot(x, mean, tip=f"{words}: {plain(mean)}")
    half: Interval = c.difference
    tip = f"{words}: {plain(mean)}" + (f", over alpha0 {percent_interval(c.relative)}" if c.relative else "")
    return charts.Dot(x, mean, mean - half.estimate + half.low, mean - half.estimate + half.high, tip)


def _mean(results: Results, runs: Runs, part: str = "test") -> float:
    return float(results.trials[f"{part}_{results.metric}"].iloc[list(runs.rows.values())].mean())


def _legend(findings: Sequence[Finding], *, with_treated: bool) -> tuple[str, ...]:
    present = {arm for f in findings for arm in f.cell.controls}
    order = ("alpha0", "baseline", "shuffled", "template")
    return (*(("treated",) if with_treated else ()), *(arm for arm in order if arm in present))


def _cut(cells: int) -> str:
    return (
        f" {MOST_PANELS} of {cells:,} cells are drawn, those with the largest effects; the tables hold all." if cells > MOST_PANELS else ""
    )


def cell_mean(results: Results, cell: Cell, alpha: float) -> float:
    """Returns the mean validation value of a cell at one alpha: what selection may look at."""
    return _mean(results, cell.treated[alpha], "valid")
