"""Colours and styles of all figures, in one place: the page's CSS, SVG files and PDF files are made from them.

The colours of arms are Okabe and Ito's, which remain distinct in the common kinds of colour blindness; each arm has a marker and a line
pattern of its own as well, so that nothing rests on colour.
"""

from llmkt_ray.report.figures.canvas import Style

PALETTES: dict[str, dict[str, str]] = {
    "light": {
        "ink": "#16202c", "muted": "#5a6675", "grid": "#e3e8ee", "axis": "#9aa5b1", "paper": "#ffffff",
        "phase": "#eef3f9", "small": "#f1f3f5",
        "treated": "#0067a6", "shuffled": "#c25700", "alpha0": "#4b5563", "baseline": "#66727f", "template": "#007a5a", "other": "#a2488a",
        "reference": "#8a6d00", "good": "#0b7a55", "bad": "#b3372f", "heat": "#0067a6", "cold": "#c25700",
    },
    "dark": {
        "ink": "#e8edf3", "muted": "#a3b0bf", "grid": "#2a3440", "axis": "#66758a", "paper": "#171e27",
        "phase": "#1d2835", "small": "#222c37",
        "treated": "#5ab4ee", "shuffled": "#f39a4a", "alpha0": "#c3ccd6", "baseline": "#8f9dad", "template": "#3fcb9e", "other": "#dc8fc6",
        "reference": "#e0c14f", "good": "#4cc795", "bad": "#f08a80", "heat": "#5ab4ee", "cold": "#f39a4a",
    },
}  # fmt: skip
"""Scheme to colour name to hex colour. Text colours have a contrast of at least 4.5 : 1 on the paper."""

SERIES: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "treated": ("treated", "circle", ()),
    "shuffled": ("shuffled", "square", (6, 3)),
    "template": ("template", "diamond", (8, 2, 2, 2)),
    "alpha0": ("alpha0", "triangle", ()),
    "baseline": ("baseline", "down", (2, 2)),
    "reference": ("reference", "bar", (1, 3)),
    "front": ("muted", "circle", ()),
}
"""Arm to (colour, marker, dash)."""
OTHER = ("other", "diamond", (3, 2))


def series(arm: str) -> tuple[str, str, tuple[float, ...]]:
    """Returns (colour name, marker, dash) of an arm; arms without a look of their own share one."""
    return SERIES.get(arm, OTHER)


def _styles() -> dict[str, Style]:
    styles = {
        "grid": Style(stroke="grid"),
        "axis": Style(stroke="axis"),
        "zero": Style(stroke="ink", width=1.2),
        "rule": Style(stroke="muted", dash=(2, 3)),
        "phase": Style(fill="phase"),
        "small": Style(fill="small"),
        "label": Style(fill="muted", size=11),
        "strong": Style(fill="ink", size=11.5, bold=True),
        "value": Style(fill="ink", size=11),
        "title": Style(fill="ink", size=13, bold=True),
        "reference-text": Style(fill="reference", size=10.5),
        "alpha0-text": Style(fill="alpha0", size=10.5),
        "baseline-text": Style(fill="baseline", size=10.5),
        "on-dark": Style(fill="paper", size=11, bold=True),
    }
    for colour in ("treated", "shuffled", "template", "alpha0", "baseline", "other", "reference", "good", "bad", "muted"):
        styles[f"mark-{colour}"] = Style(fill=colour, stroke="paper", width=1)
        styles[f"band-{colour}"] = Style(fill=colour, opacity=0.16)
        styles[f"bar-{colour}"] = Style(fill=colour, opacity=0.32)
        styles[f"whisker-{colour}"] = Style(stroke=colour, width=2)
        dash = SERIES[colour][2] if colour in SERIES else OTHER[2] if colour == "other" else ()
        styles[f"line-{colour}"] = Style(stroke=colour, width=2, dash=dash)
        styles[f"thin-{colour}"] = Style(stroke=colour, width=1.2, dash=dash)
    for step in range(1, 11):
        styles[f"heat-{step}"] = Style(fill="heat", opacity=step / 10)
        styles[f"cold-{step}"] = Style(fill="cold", opacity=step / 10)
    return styles


STYLES = _styles()


def css_rules() -> str:
    """Returns one CSS rule a style, on custom properties `--c-<colour>`."""
    rules = []
    for name, style in STYLES.items():
        parts = [f"fill:var(--c-{style.fill})" if style.fill else "fill:none"]
        if style.fill and style.opacity < 1:
            parts.append(f"fill-opacity:{style.opacity:g}")
        if style.stroke:
            parts.append(f"stroke:var(--c-{style.stroke});stroke-width:{style.width:g}")
        if style.dash:
            parts.append("stroke-dasharray:" + " ".join(f"{d:g}" for d in style.dash))
        if style.size:
            parts.append(f"font-size:{style.size:g}px" + (";font-weight:650" if style.bold else ""))
        rules.append(f".g-{name}{{{';'.join(parts)}}}")
    return "\n".join(rules)


def css_colours(scheme: str) -> str:
    """Returns the custom properties of one scheme, "light" or "dark"."""
    return "".join(f"--c-{name}:{colour};" for name, colour in PALETTES[scheme].items())
