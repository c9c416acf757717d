"""Gains over each control, and the parts they consist of."""

from collections.abc import Sequence
from dataclasses import replace

from llmkt_ray.report.cells import claimed_at
from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding, Step
from llmkt_ray.report.levels import averaged
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import Figure, Section, Table, chosen, cut, sample
from llmkt_ray.report.text import p_value, percent_interval, plain, value_interval


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
        if not rows:  # the controls' means are 0: nothing is relative to them, the table has the differences
            continue
        name = f"gain of treated at alpha {finding.cell.claim_alpha:g}, % of the control's {results.metric}"
        canvas = charts.intervals(
            f"{finding.cell.label}: {name}",
            f"% of the control's {results.metric}; right is better",
            rows,
            reach,
            results.smallest_effect,
            as_percent=True,
        )
        figures.append(Figure(f"gains-{finding.cell.number}", finding.cell.title, finding.cell.detail, canvas, finding.cell.trials))
    at = claimed_at(results, (f.cell for f in shown))
    caption = (
        f"{results.gain} of treated at {at} over each control, in % of the control; right "
        "of 0 is better. "
        f"Marker: mean. Line: 95 % interval. Grey: smaller than the smallest effect of interest ({results.smallest_effect:.0%})."
        f"{results.compares} {sample(every)}"
        f"{cut(len(shown))}"
    )
    return Section(
        key="gains",
        title="Gains over each control",
        short="Gains",
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
            f"{c.difference.n_seeds} \u00d7 {c.difference.n_users:,}", plain(c.seed_correlation, 2), "; ".join(c.conditions) or "\u2013",
        )
        for f in findings for arm, c in f.contrasts.items()
    ]  # fmt: skip
    columns = (
        "cell", "control", "treated", "control mean", f"difference in {results.metric} [95 %]", "relative [95 %]", "p", "p (Holm)",
        "seeds \u00d7 users", "correlation of shared seeds", "conditional on",
    )  # fmt: skip
    title = f"All planned contrasts, {claimed_at(results, (f.cell for f in findings))}"
    return Table(title, columns, (False, False, *(True,) * 8, False), tuple(rows))


def _together(results: Results, findings: Sequence[Finding]) -> list[tuple[str, list[Finding], tuple[Step, ...]]]:
    """Returns (dataset, cells, parts) for every dataset with several cells: the parts that all of them have, averaged over them."""
    found = []
    for dataset in dict.fromkeys(str(f.cell.factors["dataset"]) for f in findings):
        cells = [f for f in findings if str(f.cell.factors["dataset"]) == dataset]
        steps = []
        for step in cells[0].steps if len(cells) > 1 else ():
            runs = [(f.cell.runs(step.arm, f.cell.claim_alpha), f.cell.runs(step.control)) for f in cells]
            pairs = [(one, other) for one, other in runs if one is not None and other is not None]
            mean = averaged(results, pairs, results.metric) if len(pairs) == len(cells) else None
            if mean is not None:
                steps.append(replace(step, contrast=mean))
        if len(steps) > 1:
            found.append((dataset, cells, tuple(steps)))
    return found


def attribution(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns where the gain comes from: differences of neighbouring arms, which add up."""
    shown = [f for f in findings if len(f.steps) >= 2]
    if not shown:
        return None
    every = [step.contrast for f in shown for step in f.steps if step.contrast is not None]
    reach = charts.reach_of([c.difference for c in every], 0.004, 1.8)
    arms = {"schedule": "alpha0", "regularisation": "shuffled", "own profile": "treated", "the LLM": "template", "in all": "baseline"}
    figures = []
    panels = [
        (f"all-{dataset}", f"All {len(cells)} cells of {dataset}", "mean", steps, "") for dataset, cells, steps in _together(results, shown)
    ]
    panels += [(str(f.cell.number), f.cell.title, f.cell.detail, f.steps, f.cell.trials) for f in chosen(shown)]
    for key, title, detail, steps, trials in panels:
        rows = [
            charts.Bar(s.name, arms.get(s.name, "other"), s.contrast.difference, f"{s.meaning}: {value_interval(s.contrast.difference)}")
            for s in steps
            if s.contrast is not None
        ]
        canvas = charts.bars(f"{title} {detail}: parts of the gain".replace("  ", " "), f"{results.metric}; right is better", rows, reach)
        figures.append(Figure(f"attribution-{key}", title, detail, canvas, trials))
    at = claimed_at(results, (f.cell for f in shown))
    rows_of_table = tuple(
        (
            f.cell.label, s.name, s.meaning, value_interval(s.contrast.difference), p_value(s.contrast.difference.p),
            p_value(f.steps_holm[s.name]),
        )
        for f in shown
        for s in f.steps
        if s.contrast is not None
    )  # fmt: skip
    return Section(
        key="attribution",
        title="Where the gain comes from",
        short="Attribution",
        lead=(
            "schedule + regularisation + own profile = in all. What the LLM itself adds (treated \u2212 template) is part of the "
            "own profile, "
            "not one more term."
        ),
        caption=(
            f"Difference in test {results.metric} between two arms at {at}, in the metric's own unit; "
            "right of 0 is better. "
            f"Bar: mean. Line: 95 % interval. {sample(every)}{cut(len(shown))}"
        ),
        figures=tuple(figures),
        tables=(
            Table(
                "The parts",
                ("cell", "part", "arms", f"difference in {results.metric} [95 %]", "p", "p (Holm, over all parts)"),
                (False, False, False, True, True, True),
                rows_of_table,
            ),
        ),
    )
