"""Q2: whether knowledge is worth more where there is less to learn from, by the sparsity that was really reached."""

from collections.abc import Sequence
from operator import itemgetter

from llmkt_ray.report.cells import claimed_at
from llmkt_ray.report.figures import charts
from llmkt_ray.report.figures.canvas import span
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.levels import Compared, Level, compared
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import MOST_PANELS, Figure, Section, Table, around, drawn_of, over, sample
from llmkt_ray.report.text import count, percent_interval, plain
from llmkt_ray.stats.contrast import Contrast
from llmkt_ray.stats.interval import MIXED_FROM

PAPER = 0.9945
"""Sparsity of the paper's Amazon CDs & Vinyl (arXiv 2411.00556, section 4)."""


def sparsity_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the metric and the gain by achieved sparsity; None where the study keeps one share of the train rows only."""
    found = compared(results, findings, "sparsity")
    if not found:
        return None
    figures: list[Figure] = []
    contrasts, rows, curves = [], [], 0
    for one in found:
        points = sorted(((achieved(results, one.dataset, _share(level)), level) for level in one.levels), key=itemgetter(0))
        known = [(x, level) for x, level in points if level.gain is not None]
        contrasts += [level.gain for _, level in known if level.gain is not None]
        rows += [_row(one, x, level) for x, level in points]
        if len(known) < 2:
            continue
        curves += 1
        if curves <= MOST_PANELS:
            figures += _panels(results, one, known)
    at = claimed_at(results, (f.cell for f in findings))
    lead = _lead(results, found)
    return Section(
        key="sparsity",
        title="How sparse may the data be",
        short="Sparsity",
        lead=lead,
        caption=(
            f"Test {results.metric} ({results.direction}) of treated at {at} and of alpha0, and the gain "
            "of the one over the other in % of alpha0 (higher is better), by the achieved sparsity: the share of user-item "
            "pairs without a train row. "
            "Each user keeps a share of their train rows; validation, test and masks stay as they are. Band: 95 % interval of the gain, in "
            "the first panel drawn around treated. Dotted line: 99.45 %, the paper's sparsest dataset, where the axis reaches it. "
            f"{sample(contrasts)}" + drawn_of(MOST_PANELS, curves, "datasets \u00d7 models")
        ),
        figures=tuple(figures),
        legend=("treated", "alpha0"),
        tables=(
            Table(
                "Every share", ("where", "train rows kept", "achieved sparsity", "treated", "alpha0", "over alpha0 [95 %]", "seeds"),
                (False, True, True, True, True, True, True), tuple(rows),
            ),
        ),
    )  # fmt: skip


def achieved(results: Results, dataset: str, share: float) -> float:
    """Returns the sparsity of the train rows that models learn from, in [0, 1], mean over splits; NaN where the card does not hold it."""
    entries = [
        (entry.get("notes") or {}).get("sparsity") or {}
        for entry in results.card.get("datasets", [])
        if entry.get("name") == dataset and abs(float(entry.get("train_share", 1.0)) - share) < 1e-9
    ]
    values = [float(entry["train"]) for entry in entries if isinstance(entry.get("train"), float | int)]
    return sum(values) / len(values) if values else float("nan")


def _panels(results: Results, one: Compared, known: Sequence[tuple[float, Level]]) -> list[Figure]:
    xs = [x * 100 for x, _ in known]
    low, high = min(xs), max(xs)
    air = max((high - low) * 0.06, 0.05)
    reach = (low - air, min(high + air, 100.0))
    if high < PAPER * 100 < high + (high - low) * 0.6:
        reach = (low - air, PAPER * 100 + air)
    mark = (PAPER * 100, "99.45 %")
    treated, plain_ones, gains = [], [], []
    for x, level in known:
        gain = level.gain
        if gain is None:
            continue
        words = f"{_share(level):.0%} of the train rows kept, sparsity {x:.2%}"
        treated.append(
            charts.Dot(
                x * 100, gain.mean_arm, *around(results, gain.mean_arm, gain),
                f"treated, {words}: {plain(gain.mean_arm)}",
            )
        )  # fmt: skip
        plain_ones.append(charts.Dot(x * 100, gain.mean_control, tip=f"alpha0, {words}: {plain(gain.mean_control)}"))
        if gain.relative is not None:
            r = gain.relative
            gains.append(charts.Dot(x * 100, r.estimate * 100, r.low * 100, r.high * 100, f"{words}: {percent_interval(r)}"))
    values = [v for d in (*treated, *plain_ones) for v in (d.y, d.low, d.high)]
    name = "achieved sparsity of train, %"
    axes = charts.Axes(reach, span(values, 0.1), name, results.metric, x_mark=mark)
    lines = [charts.Series("treated", tuple(treated)), charts.Series("alpha0", tuple(plain_ones))]
    first = charts.curves(f"{one.title}: test {results.metric} by achieved sparsity", lines, [], axes)
    key = f"{one.model}-{one.dataset}"
    figures = [Figure(f"sparsity-{key}", one.title, f"test {results.metric}", first)]
    if gains:
        axes = charts.Axes(reach, span([0.0, *(v for d in gains for v in (d.y, d.low, d.high))], 0.1), name, "gain, %", 1, x_mark=mark)
        zero = [charts.Level("no gain", "baseline", 0.0)]
        second = charts.curves(f"{one.title}: gain over alpha0, %", [charts.Series("treated", tuple(gains))], zero, axes)
        figures.append(Figure(f"sparsity-gain-{key}", one.title, "gain over alpha0, %", second))
    return figures


def _lead(results: Results, found: Sequence[Compared]) -> str:
    said = []
    for one in found[:MOST_PANELS]:
        reached = ((achieved(results, one.dataset, _share(level)), level.gain) for level in one.levels if level.gain is not None)
        known = sorted(reached, key=itemgetter(0))
        ends: list[Contrast] = [known[0][1], known[-1][1]] if len(known) > 1 else []
        if len(ends) < 2 or ends[0].relative is None or ends[1].relative is None:
            continue
        dense, sparse = ends[0].relative, ends[1].relative
        seeds = min(end.difference.n_seeds for end in ends)
        if seeds < MIXED_FROM:
            word = f"inconclusive ({count(seeds, 'seed')})"
        elif sparse.low > dense.high:
            word = "more where data are sparser"
        elif sparse.high < dense.low:
            word = "less where data are sparser"
        else:
            word = "inconclusive (the intervals of the two ends overlap)"
        said.append(
            f"{one.title}: {word}, {percent_interval(dense)} at {known[0][0]:.2%} and {percent_interval(sparse)} at {known[-1][0]:.2%}."
        )
    return "Q2: is the knowledge worth more where there is less to learn from? " + " ".join(said)


def _share(level: Level) -> float:
    return float(str(level.values[0]))


def _row(one: Compared, x: float, level: Level) -> tuple[str, ...]:
    gain = level.gain
    control = plain(gain.mean_control) if gain is not None else "n/a"
    seeds = str(gain.difference.n_seeds) if gain is not None else "n/a"
    return one.title, f"{_share(level):.0%}", f"{x:.2%}", plain(level.test), control, over(gain), seeds
