"""The metric by alpha, with the lines it must beat."""

from collections.abc import Sequence

from llmkt_ray.report.cells import compare
from llmkt_ray.report.figures import charts
from llmkt_ray.report.figures.canvas import span
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import Figure, Section, Table, around, chosen, cut, legend, mean_of, sample
from llmkt_ray.report.text import p_value, percent_interval, plain
from llmkt_ray.stats.contrast import Contrast


def alpha_curves(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the metric by alpha, with the lines it must beat."""
    shown = [f for f in findings if f.cell.treated]
    if not shown:
        return None
    figures, contrasts = [], []
    for finding in chosen(shown):
        cell = finding.cell
        treated = [(alpha, mean_of(results, runs), finding.grid.get(alpha)) for alpha, runs in cell.treated.items()]
        contrasts += [c for _, _, c in treated if c is not None]
        dots = tuple(_dot(results, alpha, mean, c, f"treated, alpha {alpha:g}") for alpha, mean, c in treated)
        points = []
        for place, (arm, runs) in enumerate(pair for pair in cell.controls.items() if pair[0] not in ("baseline", "alpha0")):
            # Beside the treated dot, not on it: controls at one alpha would hide each other.
            shown_at = runs.alpha + (0.025 + 0.025 * (place // 2)) * (1 if place % 2 else -1)
            gain = compare(results, cell, runs.alpha, "alpha0", arm=arm)
            points.append(
                charts.Series(arm, (_dot(results, shown_at, mean_of(results, runs), gain, f"{arm}, alpha {runs.alpha:g}"),), joined=False)
            )
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
        figures.append(Figure(f"alpha-{cell.number}", cell.title, cell.detail, canvas, cell.trials))
    return Section(
        key="alpha",
        title="How strong the transfer should be",
        short="Alpha",
        lead=(
            "Alpha is the share of the transfer loss in phase 1. The alpha of the claim is set before the study; "
            "reading the best one off this figure would be choosing on test."
        ),
        caption=(
            f"Mean test {results.metric} over seeds and users, by alpha; {results.direction}. Band and bars: 95 % interval of the "
            "paired difference to alpha0, "
            f"drawn around the mean; where it holds the alpha0 line the two cannot be told apart. {sample(contrasts)}{cut(len(shown))}"
        ),
        figures=tuple(figures),
        legend=legend(findings),
        tables=(_alpha_table(results, shown),),
    )


def _alpha_table(results: Results, findings: Sequence[Finding]) -> Table:
    rows = [
        (
            f.cell.label, f"{alpha:g}", plain(mean_of(results, runs)), plain(mean_of(results, runs, "valid")),
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


def _dot(results: Results, x: float, mean: float, c: Contrast | None, words: str) -> charts.Dot:
    if c is None:
        return charts.Dot(x, mean, tip=f"{words}: {plain(mean)}")
    tip = f"{words}: {plain(mean)}" + (f", over alpha0 {percent_interval(c.relative)}" if c.relative else "")
    return charts.Dot(x, mean, *around(results, mean, c), tip)
