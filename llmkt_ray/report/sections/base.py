"""What a section of the page consists of, and what its figures share."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmkt_ray.report.cells import Runs
from llmkt_ray.report.figures.canvas import Canvas
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.text import listed, percent_interval
from llmkt_ray.stats.contrast import Contrast

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
    """One panel with its heading.

    Attributes:
        name: of its file.
        title, detail: its heading.
        canvas: what is drawn.
        trials: words that find its trials in the page's list; empty for no link.
    """

    name: str
    title: str
    detail: str
    canvas: Canvas
    trials: str = ""


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        key: its anchor.
        title: a heading.
        short: the title in the page's navigation.
        lead: what the reader sees here and how to read it.
        caption: units, direction of better, n, and what bands mean.
        figures: panels.
        legend: arms named in a legend.
        tables: the numbers behind the figures.
        items: (question, answer, evidence).
    """

    key: str
    title: str
    short: str
    lead: str
    caption: str = ""
    figures: tuple[Figure, ...] = ()
    legend: tuple[str, ...] = ()
    tables: tuple[Table, ...] = field(default=())
    items: tuple[tuple[str, str, str], ...] = ()


def chosen(findings: Sequence[Finding], most: int = MOST_PANELS) -> list[Finding]:
    """Returns the findings whose panels are drawn: all of them if they are few, else those with the largest effects, in their order."""
    if len(findings) <= most:
        return list(findings)

    def size(finding: Finding) -> float:
        gain = finding.contrasts.get("alpha0")
        return abs(gain.relative.estimate) if gain is not None and gain.relative is not None else -1.0

    kept = {f.cell.number for f in sorted(findings, key=size, reverse=True)[:most]}
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
        "seeds and splits": "mixed model with crossed random seeds and splits, where it is wider than t over splits",
    }
    methods = [words[m] for m in words if any(c.difference.method == m for c in contrasts)]
    few = any(c.difference.conditional and c.difference.method != "users" for c in contrasts)
    one_split = all(c.n_splits == 1 for c in contrasts)
    return (
        f"n = {span_in_words(users)} users, {span_in_words(seeds)} {'seed' if seeds == [1] else 'seeds'}"
        f"{', one split' if one_split else ''}. Interval: 95 %, paired on users and seeds ({listed(methods)})"
        f"{'; conditional on these seeds' if few else ''}{'; conditional on one split' if one_split else ''}."
    )


def span_in_words(values: Sequence[int]) -> str:
    """Returns `3`, or `1 to 3` of numbers that differ."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def over(found: Contrast | None) -> str:
    """Returns a contrast's relative effect with its interval, `n/a` where there is none."""
    return percent_interval(found.relative) if found is not None and found.relative is not None else "n/a"


def mean_of(results: Results, runs: Runs, part: str = "test") -> float:
    """Returns the mean of the main metric over the trials of an arm, on "test" or on "valid"."""
    column = results.tested if part == "test" else results.trials[f"{part}_{results.metric}"]
    return float(column.iloc[list(runs.rows.values())].mean())


def around(results: Results, mean: float, c: Contrast) -> tuple[float, float]:
    """Returns the interval of a contrast drawn around an arm's mean, lower end first, on the metric's own axis."""
    ends = sorted(mean + results.sign() * (end - c.difference.estimate) for end in (c.difference.low, c.difference.high))
    return ends[0], ends[1]


def legend(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Returns the arms that a legend names."""
    present = {arm for f in findings for arm in f.cell.controls}
    return ("treated", *(arm for arm in ("alpha0", "baseline", "shuffled", "template") if arm in present))


def cut(cells: int, most: int = MOST_PANELS) -> str:
    """Returns the sentence that says that not all panels are drawn, empty where all are."""
    return f" {most} of {cells:,} cells are drawn, those with the largest effects; the tables hold all." if cells > most else ""


def drawn_of(drawn: int, there: int, what: str, where: str = "the table holds all") -> str:
    """Returns the sentence that says that only the first of something are drawn, empty where all are."""
    return f" The first {drawn} of {there:,} {what} are drawn; {where}." if there > drawn else ""
