"""N2: for how many models the gain holds, one row a model, against each control that the claim needs."""

from collections.abc import Sequence

import numpy as np

from llmkt_ray.report.cells import claimed_at
from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding, of_contexts, unclaimed
from llmkt_ray.report.levels import averaged
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import MOST_PANELS, Figure, Section, Table, drawn_of, over, sample
from llmkt_ray.report.text import count, enough, hedged, p_value, percent, plain
from llmkt_ray.stats.claims import CLAIM_CONTROLS
from llmkt_ray.stats.contrast import Contrast
from llmkt_ray.stats.corrections import holm

FEWEST = 3
"""Models below which there is no breadth to speak of."""


def breadth_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the gain of every model; None where the study has fewer than three."""
    found: dict[tuple[str, str], dict[str, Contrast]] = {}
    for (dataset, model), cells in of_contexts(findings).items():
        for control in CLAIM_CONTROLS:
            pairs = [
                (f.cell.treated[f.cell.claim_alpha], f.cell.controls[control])
                for f in cells
                if f.cell.claim_alpha in f.cell.treated and control in f.cell.controls
            ]
            gain = averaged(results, pairs, results.metric) if len(pairs) == len(cells) else None
            if gain is not None:
                found.setdefault((dataset, model), {})[control] = gain
    datasets = list(dict.fromkeys(dataset for dataset, _ in found))
    if len({model for _, model in found}) < FEWEST:
        return None
    names = [(at, control) for at, gains in found.items() for control in gains]
    adjusted = dict(zip(names, holm([found[at][control].difference.p for at, control in names]), strict=True))
    relative = [c.relative for gains in found.values() for c in gains.values() if c.relative is not None]
    reach = charts.reach_of(relative, 2 * results.smallest_effect, 1.8)
    figures: list[Figure] = []
    said: list[str] = []
    for dataset in datasets:
        before = len(said)
        for control in CLAIM_CONTROLS:
            mine = {model: gains[control] for (d, model), gains in found.items() if d == dataset and control in gains}
            if len(mine) < FEWEST or all(c.relative is None for c in mine.values()):
                continue
            said.append(_sentence(dataset, control, mine, {model: adjusted[(dataset, model), control] for model in mine}))
            figures.append(_figure(results, dataset, control, mine, reach))
        if len(said) > before:
            said[-1] += unclaimed([f for f in findings if str(f.cell.factors["dataset"]) == dataset])
    if not figures:
        return None
    rows = [
        (
            dataset, model, control, plain(c.mean_arm), plain(c.mean_control), over(c), p_value(c.difference.p),
            p_value(float(adjusted[(dataset, model), control])), str(c.difference.n_seeds),
        )
        for (dataset, model), gains in found.items() for control, c in gains.items()
    ]  # fmt: skip
    columns = ("dataset", "model", "over", "treated", "control", "gain [95 %]", "p", "p (Holm)", "seeds")
    return Section(
        key="breadth",
        title="For how many models it holds",
        short="Breadth",
        lead=" ".join(said),
        caption=(
            f"{results.gain} of treated at {claimed_at(results, (f.cell for f in findings))} over the control named above each panel, in % "
            "of the control, models by their gain; right of 0 is better. Marker: mean over seeds, users and the model's cells. Line: 95 % "
            f"interval. Grey: smaller than the smallest effect of interest ({results.smallest_effect:.0%}). p in the table by Holm over "
            f"all models and controls. {sample([c for gains in found.values() for c in gains.values()])}"
            + drawn_of(3 * MOST_PANELS, len(figures), "panels")
        ),
        figures=tuple(figures[: 3 * MOST_PANELS]),
        tables=(Table("Every model", columns, (False, False, False, *(True,) * 6), tuple(rows)),),
    )


def _sentence(dataset: str, control: str, gains: dict[str, Contrast], adjusted: dict[str, float]) -> str:
    seeds = [c.difference.n_seeds for c in gains.values()]
    told = [c.difference.estimate for model, c in gains.items() if adjusted[model] < 0.05 and c.difference.n_seeds >= enough(seeds)]
    up, down = sum(gain > 0 for gain in told), sum(gain < 0 for gain in told)
    rest = len(gains) - up - down
    middle = float(np.median([c.relative.estimate for c in gains.values() if c.relative is not None]))
    said = (
        f"On {dataset}, over {control}, {up} of {count(len(gains), 'model')} gain{'s' if up == 1 else ''}, {down} "
        f"lose{'s' if down == 1 else ''}, {rest} cannot be told (Holm); the median model's gain is {percent(middle)}."
    )
    return hedged(said, max(seeds))


def _figure(results: Results, dataset: str, control: str, gains: dict[str, Contrast], reach: tuple[float, float]) -> Figure:
    known = {model: c.relative for model, c in gains.items() if c.relative is not None}
    rows = [
        charts.Bar(charts.short(model, charts.MOST_LETTERS), "treated", relative, f"{model} over {control}: {over(gains[model])}")
        for model, relative in sorted(known.items(), key=lambda pair: -pair[1].estimate)
    ]
    title = f"{dataset}: gain over {control} by model"
    canvas = charts.intervals(
        title, f"% of {control}'s {results.metric}; right is better", rows, reach, results.smallest_effect, as_percent=True
    )
    return Figure(f"breadth-{dataset}-{control}", dataset, f"over {control}", canvas)
