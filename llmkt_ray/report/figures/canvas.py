"""A figure before it is drawn: marks on a canvas of fixed size, each with the name of a style.

Figures are our own marks and not a plotting library's because the page must be small, work without a network and without
inline styles (its content security policy allows none), print well, follow the reader's colour scheme and be read aloud.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

Point = tuple[float, float]
LETTER, GAP = 6.4, 8.0
"""Width of a letter of a label, on average, and of the space between two labels at the least, px."""


@dataclass(frozen=True)
class Style:
    """How a mark looks; colours are names in `PALETTES`.

    Attributes:
        stroke, fill: colour names, empty for none.
        width: of the stroke, px.
        dash: dash pattern, px; empty for a solid line.
        opacity: of the fill, in [0, 1].
        size: of text, px; 0 for marks without text.
        bold: whether text is bold.
    """

    stroke: str = ""
    fill: str = ""
    width: float = 1.0
    dash: tuple[float, ...] = ()
    opacity: float = 1.0
    size: float = 0.0
    bold: bool = False


@dataclass(frozen=True)
class Line:
    """A polyline, or an area where `closed`; `link` are words that find the mark's trials in the page's list."""

    points: tuple[Point, ...]
    style: str
    closed: bool = False
    tip: str = ""
    link: str = ""


@dataclass(frozen=True)
class Circle:
    """A disc."""

    x: float
    y: float
    r: float
    style: str
    tip: str = ""


@dataclass(frozen=True)
class Text:
    """One line of text; `anchor` is start, middle or end, `y` the base line."""

    x: float
    y: float
    text: str
    style: str = "label"
    anchor: str = "start"


Mark = Line | Circle | Text


@dataclass
class Canvas:
    """A figure of `width` x `height` px.

    Attributes:
        title: what is drawn, shown above.
        summary: what it shows, in one sentence, for whoever does not see it.
    """

    width: float
    height: float
    title: str
    summary: str
    marks: list[Mark] = field(default_factory=list)

    def line(self, *points: Point, style: str, closed: bool = False, tip: str = "") -> None:
        """Adds a polyline; points that are not finite are left out, and end the line they are in."""
        run: list[Point] = []
        for point in [*points, (math.nan, math.nan)]:
            if math.isfinite(point[0]) and math.isfinite(point[1]):
                run.append(point)
                continue
            if len(run) > 1:
                self.marks.append(Line(tuple(run), style, closed, tip))
            run = []

    def rect(self, x: float, y: float, width: float, height: float, style: str, tip: str = "", link: str = "") -> None:
        """Adds a filled rectangle; negative sizes extend to the left and upwards."""
        corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
        self.marks.append(Line(corners, style, True, tip, link))

    def text(self, x: float, y: float, text: str, style: str = "label", anchor: str = "start") -> None:
        """Adds one line of text."""
        self.marks.append(Text(x, y, text, style, anchor))

    def marker(self, shape: str, x: float, y: float, style: str, tip: str = "", r: float = 4.0) -> None:
        """Adds a marker: circle, square, diamond, triangle, down or bar."""
        if not (math.isfinite(x) and math.isfinite(y)):
            return
        if shape == "circle":
            self.marks.append(Circle(x, y, r, style, tip))
            return
        corners = {
            "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
            "diamond": [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)],
            "triangle": [(0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
            "down": [(0, 1.15), (1.1, -0.85), (-1.1, -0.85)],
            "bar": [(-0.35, -1.3), (0.35, -1.3), (0.35, 1.3), (-0.35, 1.3)],
        }[shape]
        self.marks.append(Line(tuple((x + dx * r, y + dy * r) for dx, dy in corners), style, True, tip))


@dataclass(frozen=True)
class Scale:
    """A linear map from values in [low, high] to pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Returns the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def clipped(self, value: float) -> float:
        """Returns the pixel of a value, that of the nearer end where it lies outside."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, count: int = 4) -> list[float]:
        """Returns about `count` round values inside."""
        step = _round_step((self.high - self.low) / max(count, 1))
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def named_ticks(self, count: int, name: Callable[[float], str]) -> list[tuple[float, str]]:
        """Returns at most about `count` round values inside with their names, so few that no name touches the next."""
        for most in range(count, 0, -1):
            named = [(value, name(value)) for value in self.ticks(most)]
            pairs = itertools.pairwise(named)
            if all(abs(self(b) - self(a)) >= LETTER * (len(of_a) + len(of_b)) / 2 + GAP for (a, of_a), (b, of_b) in pairs):
                break
        return named


def span(values: list[float], pad: float = 0.08) -> tuple[float, float]:
    """Returns a range that holds all finite values with some air; (0, 1) where there are none."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    air = (high - low) * pad or max(abs(high), 1e-3) * 0.1
    return low - air, high + air


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
