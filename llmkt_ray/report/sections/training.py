"""Training: validation by epoch, and what the transfer does in phase 1."""

from collections.abc import Mapping, Sequence

import pandas as pd

from llmkt_ray.report.cells import Runs
from llmkt_ray.report.figures import charts
from llmkt_ray.report.figures.canvas import span
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import Figure, Section, chosen, cut, legend
from llmkt_ray.report.text import count


def training_curves(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the validation metric by epoch, and the transfer loss and gradient ratio of phase 1."""
    column = f"valid_{results.metric}"
    if not len(results.epochs) or column not in results.epochs:
        return None
    by_trial = results.epochs_by_trial
    figures = []
    for finding in chosen(findings):
        cell = finding.cell
        runs = {arm: cell.controls[arm] for arm in ("baseline", "alpha0", "shuffled", "template") if arm in cell.controls}
        if cell.claim_alpha in cell.treated:
            runs["treated"] = cell.treated[cell.claim_alpha]
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
        short="Training",
        lead="Validation after each evaluated epoch, and what the transfer does in phase 1. Test is opened once, after the last epoch.",
        caption=(
            f"Validation {results.metric} ({results.direction}), transfer loss (lower is closer to the target) and the ratio of the "
            "transfer's to the model's "
            "gradient norm at the tapped layer (about 1: both pull equally), by epoch. Line: mean over seeds. Band: from the "
            "lowest to the highest seed. "
            f"n = {count(max((r.seeds for f in findings for r in f.cell.treated.values()), default=0), 'seed')}.{cut(len(findings))}"
        ),
        figures=tuple(figures),
        legend=legend(findings),
    )


def _by_epoch(results: Results, by_trial: Mapping[str, pd.DataFrame], runs: Runs, arm: str, column: str) -> charts.Series | None:
    keys = [results.keys[row] for row in runs.rows.values()]
    frames = [by_trial[key][["epoch", column]] for key in keys if key in by_trial]
    if not frames:
        return None
    table = pd.concat(frames).dropna().groupby("epoch")[column].agg(["mean", "min", "max"])
    if table.empty:
        return None
    dots = tuple(charts.Dot(float(epoch), mean, low, high) for epoch, (mean, low, high) in zip(table.index, table.to_numpy(), strict=True))
    return charts.Series(arm, dots, markers=False)


def _switch(results: Results, by_trial: Mapping[str, pd.DataFrame], runs: Mapping[str, Runs]) -> float | None:
    """Returns the last epoch of phase 1, None where the arms have one phase only."""
    for arm in ("treated", "alpha0", "shuffled"):
        for row in runs[arm].rows.values() if arm in runs else ():
            frame = by_trial.get(results.keys[row])
            if frame is not None and {1, 2} <= set(frame["phase"]) and frame["phase"].iloc[0] == 1:
                return float(frame.loc[frame["phase"] == 1, "epoch"].max())
    return None
