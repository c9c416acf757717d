"""What was measured, kept in one JSON file, and shown as lines, as a table and as a picture."""

import json
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measurement.

    Attributes:
        name: what was measured, for example "epoch, 1m, BPR".
        value: the figure, in the target's unit.
        target: what it is held against; None: it is only reported.
        smaller: whether smaller is better.
        unit: "x" for a ratio, "s", "GB".
        pairs: how many pairs the median is over.
        sides: the two sides' medians, in seconds; empty where there is one side.
    """

    name: str
    value: float
    target: float | None
    smaller: bool
    unit: str
    pairs: int
    sides: tuple[float, ...] = ()

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.smaller else self.value >= self.target

    @property
    def verdict(self) -> str:
        """The last two columns: target and whether it is met."""
        if self.target is None:
            return "reported"
        return f"{'at most' if self.smaller else 'at least'} {self.target:g} {self.unit}: {'met' if self.met else 'NOT MET'}"

    def line(self) -> str:
        """Returns the figure as one line: name, figure, target, met or not."""
        sides = " / ".join(f"{side:.3f}" for side in self.sides)
        return f"{self.name:36} {self.value:8.3f} {self.unit:3} {self.verdict:28} {sides and f'({sides} s, {self.pairs} pairs)'}"


def save(figures: list[Figure], folder: Path) -> list[Figure]:
    """Adds figures to those of earlier runs, new ones in the place of old ones; writes JSON, table and picture; returns all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "figures.json"
    earlier = [Figure(**{**row, "sides": tuple(row["sides"])}) for row in json.loads(path.read_text())] if path.exists() else []
    known = {figure.name: figure for figure in [*earlier, *figures]}
    path.write_text(json.dumps([asdict(figure) for figure in known.values()], indent=1) + "\n")
    (folder / "table.md").write_text(table(list(known.values())))
    (folder / "figures.svg").write_text(picture(list(known.values())))
    return list(known.values())


def table(figures: list[Figure]) -> str:
    """Returns a Markdown table."""
    rows = ["| measured | figure | target | sides, s | pairs |", "|---|---|---|---|---|"]
    for figure in figures:
        sides = " / ".join(f"{side:.3f}" for side in figure.sides)
        rows.append(f"| {figure.name} | {figure.value:.3f} {figure.unit} | {figure.verdict} | {sides} | {figure.pairs} |")
    return "\n".join(rows) + "\n"


def picture(figures: list[Figure]) -> str:
    """Returns an SVG: one bar a target, its length the figure over the target on a scale to 2, a line at 1."""
    shown = [figure for figure in figures if figure.target]
    height, left, scale = 22, 270, 200
    parts = []
    for place, figure in enumerate(shown):
        share, top = figure.value / float(figure.target or 1), 30 + place * height
        words = f"{figure.value:.2f} {figure.unit}, {figure.verdict}"
        colour = "#2a7f62" if figure.met else "#b3432b"
        parts.append(
            f'<text x="{left - 8}" y="{top + 13}" text-anchor="end">{escape(figure.name)}</text>'
            f'<rect x="{left}" y="{top}" width="{min(share, 2) * scale:.1f}" height="16" fill="{colour}"/>'
            f'<text x="{left + 2 * scale + 10}" y="{top + 13}">{escape(words)}</text>'
        )
    total = 40 + len(shown) * height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{total}" font-family="sans-serif" font-size="12" role="img">'
        f"<title>Figures over their targets</title><rect width='900' height='{total}' fill='white'/>"
        f'<text x="{left + scale}" y="18" text-anchor="middle">target</text>{"".join(parts)}'
        f'<line x1="{left + scale}" y1="22" x2="{left + scale}" y2="{total - 8}" stroke="black" stroke-dasharray="3 3"/></svg>\n'
    )
