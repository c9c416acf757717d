"""Figures as PDF files for a paper: one page of the figure's size, vector marks, Helvetica, the light scheme.

A figure has three kinds of marks, and PDF's own operators draw them; that is less than any plotting library would bring along.
"""

from llmkt_ray.report.figures.canvas import Canvas, Circle, Line, Mark
from llmkt_ray.report.figures.style import PALETTES, STYLES

HEAD = 28.0
"""Room for the title above the figure, pt."""
_KAPPA = 0.5523
"""Control point of a quarter circle."""
_WIDTHS = (
    "278 278 355 556 556 889 667 191 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556 556 556 556 278 278 584 584 584 556 "
    "1015 667 667 722 722 667 611 778 722 278 500 667 556 833 722 778 667 778 722 667 611 722 667 944 667 667 611 278 278 278 469 556 "
    "333 556 556 500 556 556 278 556 556 222 222 500 222 833 556 556 556 556 333 500 278 556 500 722 500 500 500 334 260 334 584"
)
WIDTHS = tuple(int(width) for width in _WIDTHS.split())
"""Advance widths of Helvetica from space to tilde, in thousandths of the size (Adobe's font metrics)."""
_PLAIN = str.maketrans({"\u2212": "\u2013", "\u202f": " ", "\u2191": "^", "\u2193": "v", "\u2026": "..."})


def pdf_file(canvas: Canvas) -> bytes:
    """Returns the figure as a PDF document; characters that Windows-1252 does not have become question marks."""
    height = canvas.height + HEAD
    body = [f"1 0 0 -1 0 {height:g} cm"]  # y down, as in the canvas
    body.append(_text(8, 16, canvas.title, "title", "start"))
    body.append(f"1 0 0 1 0 {HEAD:g} cm")
    body += [_mark(mark) for mark in canvas.marks]
    stream = "\n".join(body).encode("cp1252", errors="replace")
    opacities = sorted({style.opacity for style in STYLES.values()})
    states = " ".join(f"/O{opacity * 100:.0f} << /ca {opacity:g} >>" for opacity in opacities)
    fonts = " ".join(
        f"/{name} << /Type /Font /Subtype /Type1 /BaseFont /{font} /Encoding /WinAnsiEncoding >>"
        for name, font in (("F", "Helvetica"), ("B", "Helvetica-Bold"))
    )
    resources = f"<< /Font << {fonts} >> /ExtGState << {states} >> >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {canvas.width:g} {height:g}] /Resources {resources} /Contents 4 0 R >>".encode(),
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
    ]
    return _document(objects)


def _document(objects: list[bytes]) -> bytes:
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def _mark(mark: Mark) -> str:
    if isinstance(mark, Line):
        first, *rest = mark.points
        path = f"{first[0]:.2f} {first[1]:.2f} m " + " ".join(f"{x:.2f} {y:.2f} l" for x, y in rest) + (" h" if mark.closed else "")
        return _painted(path, mark.style, mark.closed)
    if isinstance(mark, Circle):
        return _painted(_circle(mark), mark.style, True)
    return _text(mark.x, mark.y, mark.text, mark.style, mark.anchor)


def _painted(path: str, name: str, closed: bool) -> str:
    style = STYLES[name]
    fill, stroke = bool(style.fill) and closed, bool(style.stroke)
    parts = ["q", f"/O{style.opacity * 100:.0f} gs"]
    if fill:
        parts.append(f"{_rgb(style.fill)} rg")
    if stroke:
        dash = " ".join(f"{d:g}" for d in style.dash)
        parts.append(f"{_rgb(style.stroke)} RG {style.width:g} w [{dash}] 0 d")
    return " ".join([*parts, path, "B" if fill and stroke else "f" if fill else "S" if stroke else "n", "Q"])


def _circle(mark: Circle) -> str:
    x, y, r, k = mark.x, mark.y, mark.r, mark.r * _KAPPA
    arcs = [
        (x + r, y + k, x + k, y + r, x, y + r), (x - k, y + r, x - r, y + k, x - r, y),
        (x - r, y - k, x - k, y - r, x, y - r), (x + k, y - r, x + r, y - k, x + r, y),
    ]  # fmt: skip
    return f"{x + r:.2f} {y:.2f} m " + " ".join(" ".join(f"{v:.2f}" for v in arc) + " c" for arc in arcs) + " h"


def _text(x: float, y: float, text: str, name: str, anchor: str) -> str:
    style = STYLES[name]
    words = text.translate(_PLAIN)
    back = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * text_width(words, style.size)
    escaped = words.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)").replace("\r", " ").replace("\n", " ")
    font = "B" if style.bold else "F"
    # The page is upside down (y grows downwards), so letters are turned back.
    return f"BT /{font} {style.size:g} Tf {_rgb(style.fill)} rg 1 0 0 -1 {x - back:.2f} {y:.2f} Tm ({escaped}) Tj ET"


def text_width(text: str, size: float) -> float:
    """Returns the width of a text in Helvetica, pt; letters beyond ASCII count as an average one."""
    return sum(WIDTHS[ord(c) - 32] if 32 <= ord(c) < 127 else 556 for c in text) * size / 1000


def _rgb(colour: str) -> str:
    value = PALETTES["light"][colour]
    return " ".join(f"{int(value[i : i + 2], 16) / 255:.3f}" for i in (1, 3, 5))
