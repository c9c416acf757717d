"""What the gain depends on: layer x alpha, and the importance of every factor with the seed as noise floor."""

from collections.abc import Mapping, Sequence

from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import MOST_PANELS, Figure, Section, Table, drawn_of, sample
from llmkt_ray.report.text import count, percent, percent_interval
from llmkt_ray.stats import importance
from llmkt_ray.stats.importance import SEED

MOST_ROWS, MOST_COLUMNS = 12, 12


def heat_maps(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns gains over alpha0 by layer (or another varied factor) and alpha, one map a dataset and model."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((str(finding.cell.factors["dataset"]), str(finding.cell.factors["model"])), []).append(finding)
    maps = {at: cells for at, cells in groups.items() if len(cells) > 1 and any(len(f.grid) > 1 for f in cells)}
    if not maps:
        return None
    every = [c for cells in maps.values() for f in cells for c in f.grid.values()]
    gains = [abs(c.relative.estimate) for c in every if c.relative is not None]
    reach = max([*gains, 0.01])
    there = "the table of alphas holds all"
    most_alphas = max(len({alpha for f in cells for alpha in f.grid}) for cells in maps.values())
    figures = []
    for (dataset, model), cells in list(maps.items())[:MOST_PANELS]:
        shown = cells[:MOST_ROWS]
        alphas = sorted({alpha for f in shown for alpha in f.grid})[:MOST_COLUMNS]
        values = {
            (row, column): (c.relative.estimate, f"{f.cell.detail}, alpha {alpha:g}: {percent_interval(c.relative)}")
            for row, f in enumerate(shown)
            for column, alpha in enumerate(alphas)
            if (c := f.grid.get(alpha)) is not None and c.relative is not None
        }
        links = {(row, column): f"cell:{shown[row].cell.number} alpha:{alphas[column]:g} arm:treated" for row, column in values}
        labels = [f.cell.brief for f in shown]
        canvas = charts.heat(f"{model} on {dataset}: gain over alpha0, %", labels, [f"{a:g}" for a in alphas], values, reach, links)
        figures.append(Figure(f"heat-{model}-{dataset}", f"{model} on {dataset}", "gain over alpha0, %", canvas))
    return Section(
        key="heat",
        title="Layer and alpha together",
        short="Layer \u00d7 alpha",
        lead="Where in the model and how strong: every combination that ran. Look for areas, not for the brightest square.",
        caption=(
            f"{results.gain} of treated over alpha0, means, in %; higher is better. Blue: gain, orange: loss, the "
            f"stronger the larger (full colour: {percent(reach)[1:]}). Means over seeds and users; the intervals are in the tips and "
            f"in the table of alphas. {sample(every)} A square leads to its trials, and from there to users."
            + drawn_of(MOST_PANELS, len(maps), "maps", there)
            + drawn_of(MOST_ROWS, max(map(len, maps.values())), "rows of a map", there)
            + drawn_of(MOST_COLUMNS, most_alphas, "alphas of a map", there)
        ),
        figures=tuple(figures),
    )


def importance_section(results: Results, fanova: Mapping[str, float], ped: Mapping[str, float]) -> Section | None:
    """Returns the importance of every varied factor."""
    if len(fanova) < 2:
        return None
    floor = fanova.get(SEED)
    rows = [
        (name.replace("_", " "), "reference" if name == SEED else "treated", share, f"{name}: {share:.1%}")
        for name, share in fanova.items()
    ]
    trials = int(((results.trials["arm"] == "treated") & (results.trials["status"] == "done")).sum())
    canvas = charts.dots("Importance of each factor, fANOVA", rows, (0.0, max(fanova.values()) * 1.06), floor)
    table = Table(
        "Both measures", ("factor", "fANOVA", "PED-ANOVA"), (False, True, True),
        tuple((name.replace("_", " "), f"{share:.1%}", f"{ped[name]:.1%}" if name in ped else "\u2013") for name, share in fanova.items()),
    )  # fmt: skip
    return Section(
        key="importance",
        title="What matters most",
        short="Importance",
        lead=(
            "The seed is one of the factors: what is not above it does no more than repeating the study would."
            if floor is not None
            else "Inconclusive: all trials have one seed, so nothing says how much of this repeating the study would do."
        ),
        caption=(
            f"Share of the variation in validation {results.metric} (relative to its dataset and model) that a factor explains, "
            "from 0 to 1, treated trials, one row a configuration and seed; neither direction is better. Marker: the share; its own "
            f"uncertainty is not drawn. {'Dotted line: the seed, the noise floor' if floor is not None else 'No noise floor'}. "
            f"n = {_sampled(trials)}."
        ),
        figures=(Figure("importance", "Importance", "fANOVA, share", canvas),),
        tables=(table,),
    )


def _sampled(trials: int) -> str:
    most = importance.MOST_ROWS
    return count(trials, "treated trial") if trials <= most else f"{most:,} of {count(trials, 'treated trial')}, a seeded sample"
