"""The metric by alpha, with the lines it must beat."""

from collections.abc import Sequence

from llmkt_ray.report.cells import Runs, compare, shared
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
    figures: list[Figure] = []
    contrasts: list[Contrast] = []
    for finding in chosen(shown):
        cell = finding.cell
        line = finding.levels.get("alpha0")
        contrasts += finding.grid.values()
        dots = tuple(
            _dot(results, alpha, runs, finding.grid.get(alpha), line, f"treated, alpha {alpha:g}") for alpha, runs in cell.treated.items()
        )
        points = []
        for place, (arm, runs) in enumerate(pair for pair in cell.controls.items() if pair[0] not in ("baseline", "alpha0")):
            # Beside the treated dot, not on it: controls at one alpha would hide each other.
            shown_at = runs.alpha + (0.025 + 0.025 * (place // 2)) * (1 if place % 2 else -1)
            gain = compare(results, cell, runs.alpha, "alpha0", arm=arm)
            dot = _dot(results, shown_at, runs, gain, line, f"{arm}, alpha {runs.alpha:g}")
            points.append(charts.Series(arm, (dot,), joined=False))
        arms = [] if line is None else [charts.Level("alpha0", "alpha0", line)]
        if "baseline" in finding.levels:
            schedule = compare(results, cell, cell.claim_alpha, "baseline", arm="alpha0")
            one_phase = finding.levels["baseline"] if schedule is None else _beside(results, line, schedule, -1)
            arms.append(charts.Level("baseline", "baseline", one_phase))
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
            "drawn around the mean; where it holds the alpha0 line the two cannot be told apart. An arm that lacks trials is drawn as far "
            "from that line as it is on the seeds and splits that it shares with alpha0."
            f"{results.compares} {sample(contrasts)}{cut(len(shown))}"
        ),
        figures=tuple(figures),
        legend=legend(findings),
        tables=(_alpha_table(results, shown),),
    )


def _alpha_table(results: Results, findings: Sequence[Finding]) -> Table:
    rows = []
    for finding in findings:
        for alpha, runs in finding.cell.treated.items():
            c = finding.grid.get(alpha)
            valid = mean_of(results, shared(runs, finding.cell.controls["alpha0"]) if c is not None else runs, "valid")
            rows.append(
                (
                    finding.cell.label, f"{alpha:g}", plain(mean_of(results, runs) if c is None else c.mean_arm), plain(valid),
                    plain(c.mean_control) if c is not None else "n/a",
                    percent_interval(c.relative) if c is not None and c.relative is not None else "n/a",
                    p_value(finding.grid_bh.get(alpha, float("nan"))), str(runs.seeds if c is None else c.difference.n_seeds),
                    ("; ".join(c.conditions) if c is not None else "") or "\u2013",
                )
            )  # fmt: skip
    columns = (
        "cell",
        "alpha",
        f"test {results.metric}",
        f"valid {results.metric}",
        f"test {results.metric} of alpha0",
        "over alpha0 [95 %]",
        "p (Benjamini-Hochberg)",
        "seeds",
        "conditional on",
    )
    return Table("Every alpha", columns, (False, *(True,) * 7, False), tuple(rows))


def _dot(results: Results, x: float, runs: Runs, c: Contrast | None, line: float | None, words: str) -> charts.Dot:
    """Returns the dot of an arm: beside the line of alpha0 by its contrast with it, or at its mean where it has none."""
    if c is None:
        return charts.Dot(x, mean_of(results, runs), tip=f"{words}: {plain(mean_of(results, runs))}")
    tip = f"{words}: {plain(c.mean_arm)}" + (f", over alpha0 {percent_interval(c.relative)}" if c.relative else "")
    y = _beside(results, line, c)
    return charts.Dot(x, y, *around(results, y, c), tip)


def _beside(results: Results, line: float | None, c: Contrast, side: int = 1) -> float:
    return (c.mean_control if line is None else line) + side * results.sign() * c.difference.estimate
