"""Figures as SVG: inline in the page, styled by its CSS, or as files that carry their own."""

import re
from html import escape as html_escape

from llmkt_ray.report.figures.canvas import Canvas, Circle, Line, Mark
from llmkt_ray.report.figures.style import css_colours, css_rules

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"


_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that no XML document may hold."""


def escape(text: str) -> str:
    """Returns a text as it may stand in XML and HTML, between quotes too."""
    return html_escape(_NOT_XML.sub("\ufffd", text))


def inline_svg(canvas: Canvas) -> str:
    """Returns the figure for the page: no style of its own, its summary as accessible name, all text escaped."""
    linked = [mark for mark in canvas.marks if isinstance(mark, Line) and mark.link]
    first = linked[0] if linked else None
    body = "".join(_linked(mark, mark is first) if isinstance(mark, Line) and mark.link else _mark(mark) for mark in canvas.marks)
    size = f'viewBox="0 0 {canvas.width:g} {canvas.height:g}"'
    role = "group" if linked else "img"
    return f'<svg class="fig" {size} role="{role}" aria-label="{escape(canvas.summary)}" xmlns="http://www.w3.org/2000/svg">{body}</svg>'


def svg_file(canvas: Canvas) -> str:
    """Returns the figure as an SVG document in the light scheme, with its title on top."""
    style = f"svg{{{css_colours('light')}font-family:{FONT};background:#fff}}{css_rules()}"
    title = f'<text class="g-title" x="8" y="-10">{escape(canvas.title)}</text>'
    size = f'viewBox="0 -28 {canvas.width:g} {canvas.height + 28:g}" width="{canvas.width:g}" height="{canvas.height + 28:g}"'
    body = "".join(_mark(mark) for mark in canvas.marks)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
        f"<desc>{escape(canvas.summary)}</desc><style>{style}</style>{title}{body}</svg>\n"
    )


def _linked(mark: Line, is_first: bool) -> str:
    """Returns a mark that leads to its trials; one of a figure can be reached by Tab, the others from it by the arrow keys."""
    label = f' aria-label="{escape(mark.tip)}; show its trials"'
    return f'<a class="to" href="#trials" data-filter="{escape(mark.link)}" tabindex="{0 if is_first else -1}"{label}>{_mark(mark)}</a>'


def _mark(mark: Mark) -> str:
    if isinstance(mark, Line):
        points = " ".join(f"{_n(x)},{_n(y)}" for x, y in mark.points)
        tag = "polygon" if mark.closed else "polyline"
        return f'<{tag} class="g-{mark.style}" points="{points}"{_tip(mark.tip)}/>'
    if isinstance(mark, Circle):
        return f'<circle class="g-{mark.style}" cx="{_n(mark.x)}" cy="{_n(mark.y)}" r="{_n(mark.r)}"{_tip(mark.tip)}/>'
    anchor = "" if mark.anchor == "start" else f' text-anchor="{mark.anchor}"'
    return f'<text class="g-{mark.style}" x="{_n(mark.x)}" y="{_n(mark.y)}"{anchor}>{escape(mark.text)}</text>'


def _tip(tip: str) -> str:
    return f' data-tip="{escape(tip)}"' if tip else ""


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
