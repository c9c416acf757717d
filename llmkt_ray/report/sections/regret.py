"""N3: one default for all datasets and models, and what it loses where it was not chosen."""

from collections.abc import Sequence

import numpy as np
import yaml

from llmkt_ray.report.default import default_of, fragment
from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import MOST_PANELS, Figure, Section, Table
from llmkt_ray.report.text import percent
from llmkt_ray.stats.selection import LeftOut

MOST_ROWS = 16


def regret_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the default's regret, a panel for datasets left out and one for models; None where there is no default."""
    found = default_of(results, findings)
    if found is None:
        return None
    default, settings = found
    groups = {"dataset": default.by_dataset, "model": default.by_model}
    every = [one for group in groups.values() for one in group]
    if not every:
        return None
    most = max(map(len, groups.values()))
    low, high = min([0.0, *(one.regret for one in every)]), max([0.01, *(one.regret for one in every)])
    figures = []
    for what, group in groups.items():
        if not group:
            continue
        ordered = sorted(group, key=lambda one: -one.regret)[:MOST_ROWS]
        rows = [(_where(one, group), "treated", one.regret, f"without {one.what}: {one.chosen}; own choice: {one.own}") for one in ordered]
        reach = (low * 1.1, high * 1.1)
        canvas = charts.dots(f"Regret of the default, each {what} left out", rows, reach, None, as_percent=True)
        figures.append(Figure(f"regret-{what}", f"Each {what} left out", "regret on test, %", canvas))
    said = [
        f"Leaving out a {what}: {percent(float(np.mean([one.regret for one in group])))} on average, "
        f"{percent(max(one.regret for one in group))} at worst."
        for what, group in groups.items()
        if group
    ]
    rows_of_table = tuple((one.what, f"{one.model} on {one.dataset}", one.chosen, one.own, percent(one.regret, 2)) for one in every)
    return Section(
        key="default",
        title="One default",
        short="Default",
        lead=" ".join([f"{'The default' if default.is_better else 'None is better than no transfer; the best'}: {default.config}.", *said]),
        caption=(
            f"Regret in test {results.metric}: how far the default chosen without this dataset (or model) stays below the context's own "
            "choice there, in % of it; left is better, 0 is as good, below 0 better than its own choice. One point a dataset and "
            f"model, mean over seeds, no interval. n = {default.contexts} datasets \u00d7 models, {default.shared} configurations that "
            "ran in all. Choices are made on validation."
            + (f" The {MOST_ROWS} largest of each kind are drawn; the table holds all." if most > MOST_ROWS else "")
        ),
        figures=tuple(figures[:MOST_PANELS]),
        items=(("As a study file", f"{default.config}", yaml_of(fragment(results, findings, settings))),),
        tables=(
            Table(
                "Every context", ("left out", "judged on", "default chosen without it", "own choice", "regret"),
                (False, False, False, False, True), rows_of_table,
            ),
        ),
    )  # fmt: skip


def yaml_of(values: dict[str, object]) -> str:
    """Returns a part of a study file on one line, as the page shows it."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10_000).strip()


def _where(one: LeftOut, group: Sequence[LeftOut]) -> str:
    """Names a context by what the group does not share."""
    if len({other.what for other in group}) == len(group):
        return charts.short(one.what, charts.MOST_LETTERS)
    return charts.short(f"{one.model}, {one.dataset}", charts.MOST_LETTERS)
