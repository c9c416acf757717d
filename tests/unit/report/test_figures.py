import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from llmkt_ray.report.figures import charts
from llmkt_ray.report.figures.canvas import Canvas, Scale, Text
from llmkt_ray.report.figures.style import PALETTES, STYLES
from llmkt_ray.report.figures.svg import inline_svg, svg_file
from llmkt_ray.stats.interval import Interval


def _interval(estimate, low, high):
    return Interval(estimate, low, high, 0.01, 4, 0.04, 5, 100, "mixed", 0.95)


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(scheme):
    """WCAG 2.2, 1.4.3: at least 4.5 to 1 between text and paper."""
    colours = PALETTES[scheme]
    paper = _luminance(colours["paper"])
    for name, style in STYLES.items():
        if style.size and style.fill != "paper":
            lighter, darker = sorted((_luminance(colours[style.fill]), paper), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, name


def test_schemes_name_the_same_colours():
    assert PALETTES["light"].keys() == PALETTES["dark"].keys()


def test_markup_in_a_label_is_text():
    canvas = Canvas(100, 50, "<b>title</b>", 'a "summary" <script>')
    canvas.text(0, 10, "<script>alert(1)</script>")
    canvas.marker("circle", 1, 1, "mark-treated", '"><img onerror=x>')
    root = ET.fromstring(inline_svg(canvas))
    assert {element.tag.rpartition("}")[2] for element in root.iter()} == {"svg", "text", "circle"}
    assert root.attrib["aria-label"] == 'a "summary" <script>'
    assert "title</b>" in ET.fromstring(svg_file(canvas)[svg_file(canvas).index("<svg") :])[2].text


def test_an_interval_beyond_the_axis_is_cut_and_has_no_end_mark():
    bars = [charts.Bar("over alpha0", "alpha0", _interval(0.05, -0.5, 0.5), "tip")]
    canvas = charts.intervals("gain", "%", bars, (-0.1, 0.1), 0.02, as_percent=True)
    whiskers = [m for m in canvas.marks if m.style == "whisker-alpha0"]
    assert len(whiskers) == 1
    assert [p[0] for p in whiskers[0].points] == [104.0, 288.0]


def test_points_that_do_not_exist_break_the_line():
    canvas = Canvas(10, 10, "", "")
    canvas.line((0, 0), (1, 1), (2, math.nan), (3, 3), (4, 4), style="axis")
    assert [len(m.points) for m in canvas.marks] == [2, 2]


def test_ticks_are_round_and_inside():
    assert Scale(-0.03, 0.17, 0, 1).ticks(4) == [0.0, 0.05, 0.1, 0.15]
    assert Scale(0, 7, 0, 1).ticks(5) == [0, 2, 4, 6]


@pytest.mark.parametrize("reach", [(-0.0087, 0.0163), (-0.068, 0.085), (-0.0004, 0.0001), (-120.0, 1.0), (-0.01, 0.1002)])
def test_no_name_of_a_tick_touches_the_next(reach):
    rows = [charts.Bar("the LLM", "template", _interval(sum(reach) / 2, *reach), "")]
    for canvas in (charts.intervals("t", "axis", rows, reach, None, as_percent=True), charts.bars("t", "axis", rows, reach)):
        (axis,) = [m for m in canvas.marks if isinstance(m, Text) and m.text == "axis"]
        names = sorted((m.x, m.text) for m in canvas.marks if isinstance(m, Text) and m.y == axis.y - 16)
        assert len(names) > 1
        for (x, text), (after, other) in pairwise(names):
            assert after - x > 6.4 * (len(text) + len(other)) / 2, (text, other)


def test_levels_do_not_overlap_and_stay_in_the_figure():
    levels = [charts.Level(name, "reference", value) for name, value in (("EASE", 0.2), ("ItemKNN", 0.1999), ("Pop", 0.01), ("X", 0.9))]
    dots = (charts.Dot(0.5, 0.2, 0.19, 0.21),)
    canvas = charts.curves("t", [charts.Series("treated", dots)], levels, charts.Axes((0, 1), (0.18, 0.22), "alpha", "NDCG@10"))
    places = sorted(m.y for m in canvas.marks if type(m).__name__ == "Text" and m.style == "reference-text")
    assert len(places) == 4
    assert all(after - before >= 11.9 for before, after in pairwise(places))
    assert places[-1] < canvas.height


def test_a_figure_says_in_words_what_it_shows():
    bars = [charts.Bar("over alpha0", "alpha0", _interval(0.05, 0.01, 0.09), "tip")]
    assert "over alpha0 +5.0" in charts.intervals("gain", "%", bars, (-0.1, 0.1), None, as_percent=True).summary
