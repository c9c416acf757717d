"""The arms beside simple references, and in the study's other metrics."""

from collections.abc import Sequence

from llmkt_ray.report.cells import claimed_at, compare
from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding, levelled
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import Figure, Section, Table, chosen, cut, span_in_words
from llmkt_ray.report.text import count, listed, percent_interval, plain


def references(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the arms beside Pop, ItemKNN and EASE."""
    shown = [f for f in findings if f.levels]
    if not shown:
        return None
    reach = (0.0, max(v for f in shown for v in f.levels.values()) * 1.06 or 1.0)  # everything may have hit nothing
    figures = []
    for finding in chosen(shown):
        arms = {*finding.cell.controls, "treated"}
        rows = [
            (name, name if name in arms else "reference", value, f"{name}: {plain(value)}{_of(finding, name)}")
            for name, value in sorted(finding.levels.items(), key=lambda pair: pair[1])
        ]
        canvas = charts.dots(
            f"{finding.cell.label}: test {results.metric} of every arm and reference", rows, reach, finding.levels.get("EASE")
        )
        figures.append(Figure(f"references-{finding.cell.number}", finding.cell.title, finding.cell.detail, canvas))
    at = claimed_at(results, (f.cell for f in shown))
    has = [f for f in shown if {"EASE", "treated"} <= set(f.levels)]
    below = [f.cell.label for f in has if results.sign() * (f.levels["treated"] - f.levels["EASE"]) < 0]
    run = sorted({name for f in shown for name in set(f.levels) - {*f.cell.controls, "treated"}})
    lead = "No reference lines were run: nothing says whether these models are good ones."
    if run and not has:
        lead = f"No treated model can be compared with EASE yet; of the references {listed(run)} finished."
    if has:
        lead = f"Below EASE even when treated: {listed(below, 6)}." if below else "Every treated model is at or above EASE."
        lead += f" {count(len(shown) - len(has), 'cell')} could not be compared with it." if len(has) < len(shown) else ""
    return Section(
        key="references",
        title="Against simple references",
        short="References",
        lead=lead,
        caption=(
            f"Mean test {results.metric}, {results.direction}; treated and its controls at {at}, means over "
            "seeds and users. "
            "Marker: the mean. Dotted line: EASE. References have one deterministic run a split; no intervals are drawn here."
            f"{results.compares} {_counted(results, shown)}{cut(len(shown))}"
        ),
        figures=tuple(figures),
    )


def _of(finding: Finding, arm: str) -> str:
    return f", mean of {count(finding.trials[arm], 'trial')}" if arm in finding.trials else ""


def _counted(results: Results, findings: Sequence[Finding]) -> str:
    """Returns n in words: evaluated users and seeds of the arms that are drawn."""
    runs = [r for f in findings for r in levelled(f.cell, f.contrasts).values()]
    values = results.user_values(results.metric)
    users = [len(found[0]) for r in runs for row in list(r.rows.values())[:1] if (found := values.get(str(results.keys[row]))) is not None]
    seeds = [r.seeds for r in runs]
    return f"n = {span_in_words(users)} users, {span_in_words(seeds)} {'seed' if set(seeds) == {1} else 'seeds'}." if users else ""


def other_metrics(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the gain over alpha0 in every metric of the study."""
    cells = chosen([f for f in findings if f.contrasts])
    if not cells or len(results.metrics) < 2:
        return None
    rows = []
    arms = [runs for f in cells for arm in ("alpha0", "shuffled", "template") if (runs := f.cell.controls.get(arm)) is not None]
    arms += [f.cell.treated[f.cell.claim_alpha] for f in cells]
    results.load_user_values(results.metrics, {str(results.keys[r]) for runs in arms for r in runs.rows.values()})
    for finding in cells:
        for metric in results.metrics:
            found = {
                arm: compare(results, finding.cell, finding.cell.claim_alpha, arm, metric) for arm in ("alpha0", "shuffled", "template")
            }
            if found["alpha0"] is None:
                continue
            cells_of_row = [percent_interval(c.relative) if c is not None and c.relative is not None else "\u2013" for c in found.values()]
            rows.append((finding.cell.label, metric, plain(found["alpha0"].mean_arm), *cells_of_row))
    table = Table(
        "All metrics", ("cell", "metric", "treated", "over alpha0 [95 %]", "over shuffled [95 %]", "over template [95 %]"),
        (False, False, True, True, True, True), tuple(rows),
    )  # fmt: skip
    lead = f"The claim rests on {results.metric}, which was chosen before the study; the others show whether it stands alone. "
    lead += "Positive is better in every column."
    return Section("metrics", "Other metrics", "Metrics", lead, tables=(table,))
