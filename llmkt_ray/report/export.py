"""What leaves the page: tables as CSV, LaTeX and Markdown, figures as SVG and PDF, the verdict as JSON, the default as YAML."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from llmkt_ray.artifacts import FileStore
from llmkt_ray.report import default
from llmkt_ray.report.answers import Answer
from llmkt_ray.report.diagnosis import Diagnosis
from llmkt_ray.report.figures.pdf import pdf_file
from llmkt_ray.report.figures.svg import svg_file
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.page import study_flags
from llmkt_ray.report.sections.base import Section, Table
from llmkt_ray.report.verdict import Verdict
from llmkt_ray.seeds import canonical_json
from llmkt_ray.stats.contrast import Contrast

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u2212": "$-$", "\u00d7": r"$\times$", "\u202f": r"\,", "\u2013": "--",
}  # fmt: skip
DEFAULT = "default.yaml"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_files(folder: Path, results: Results, sections: Sequence[Section]) -> None:
    """Writes `tables/` and `figures/` beside the page, in place of what an earlier page had there.

    Raises:
        StorageError: they cannot be written.
    """
    files, taken = FileStore(folder), {"tables/trials"}
    for section in sections:
        for table in section.tables:
            name = _free(f"tables/{section.key}-{slug(table.title)}", taken)
            files.write_bytes(f"{name}.csv", as_csv(table).encode())
            files.write_bytes(f"{name}.tex", as_latex(table).encode())
            files.write_bytes(f"{name}.md", as_markdown(table).encode())
        for figure in section.figures:
            name = _free(f"figures/{slug(figure.name)}", taken)
            files.write_bytes(f"{name}.svg", svg_file(figure.canvas).encode())
            files.write_bytes(f"{name}.pdf", pdf_file(figure.canvas))
    scalars = results.trials.drop(columns=["spec", "facts", "versions", "error_traceback"], errors="ignore")
    text = {name: column.map(lambda v: _safe(v) if isinstance(v, str) else v) for name, column in scalars.items()}
    files.write_bytes("tables/trials.csv", pd.DataFrame(text).to_csv(index=False).encode())
    for old in (name for of in ("tables", "figures") for name in files.list(of)):
        stem, _, kind = old.rpartition(".")
        if kind in ("csv", "tex", "md", "svg", "pdf") and stem not in taken:  # of a page that had it: this one does not
            files.delete(old)


def write_verdict(
    folder: Path, results: Results, findings: Sequence[Finding], said: Verdict, made: Sequence[Answer], found: Sequence[Diagnosis]
) -> None:
    """Writes `verdict.json`, and `default.yaml` where the study supports a recommended default.

    Raises:
        StorageError: they cannot be written.
    """
    files = FileStore(folder)
    files.write_bytes("verdict.json", (canonical_json(verdict_document(results, findings, said, made, found)) + "\n").encode())
    recommended = default.document(results, findings)
    if recommended is None:
        files.delete(DEFAULT)
    else:
        files.write_bytes(DEFAULT, yaml.safe_dump(recommended, sort_keys=False, allow_unicode=True).encode())


def verdict_document(
    results: Results, findings: Sequence[Finding], said: Verdict, made: Sequence[Answer], found: Sequence[Diagnosis]
) -> dict[str, Any]:
    """Returns the verdict as JSON values: for scripts, and for comparing studies."""
    return {
        "schema_version": 1,
        "study": results.study.get("name"),
        "study_key": results.card.get("key"),
        "metric": results.metric,
        "claim_alpha": results.claim_alpha,
        "smallest_effect": results.smallest_effect,
        "headline": said.headline,
        "reasons": list(said.reasons),
        "flags": [list(flag) for flag in study_flags(results, findings)],
        "cells": [
            {
                "label": f.cell.label,
                "factors": {name: str(value) for name, value in f.cell.factors.items()},
                "outcome": f.claim.outcome,
                "reasons": list(f.claim.reasons),
                "contrasts": {arm: {**_contrast(c), "p_holm": f.holm.get(arm)} for arm, c in f.contrasts.items()},
                "attribution": {
                    s.name: {**_contrast(s.contrast), "p_holm": f.steps_holm[s.name]} for s in f.steps if s.contrast is not None
                },
                "levels": dict(f.levels),
                "trials": dict(f.trials),
                "flags": list(f.flags),
            }
            for f in findings
        ],
        "answers": [asdict(answer) for answer in made],
        "diagnosis": [asdict(diagnosis) for diagnosis in found],
    }


def as_csv(table: Table) -> str:
    """Returns a table as CSV; a text that a spreadsheet would take for a formula gets a leading apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([_safe(v) if not numeric else v.replace("\u2212", "-") for v, numeric in zip(row, table.numeric, strict=True)])
    return out.getvalue()


def as_latex(table: Table) -> str:
    """Returns a table as a LaTeX tabular (needs the booktabs package), all text escaped."""
    spec = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [" & ".join(_latex(v) for v in row) + r" \\" for row in table.rows]
    head = " & ".join(_latex(name) for name in table.columns) + r" \\"
    return "\n".join([rf"\begin{{tabular}}{{{spec}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""])


def as_markdown(table: Table) -> str:
    """Returns a table as Markdown, with what Markdown and HTML would interpret escaped."""
    rule = "|" + "|".join("--:" if numeric else ":--" for numeric in table.numeric) + "|"
    lines = ["| " + " | ".join(_markdown(v) for v in row) + " |" for row in (table.columns, *table.rows)]
    return "\n".join([lines[0], rule, *lines[1:], ""])


def slug(text: str) -> str:
    """Returns a text as part of a file name: lower case, only letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "x"


def _free(name: str, taken: set[str]) -> str:
    """Returns a name that no file of this page has yet, and takes it: long labels, or two that differ in their signs, are cut to one."""
    free = next(one for at in count(1) if (one := name if at == 1 else f"{name}-{at}") not in taken)
    taken.add(free)
    return free


def _contrast(c: Contrast) -> dict[str, Any]:
    def one(i: Any) -> dict[str, Any]:
        return {"estimate": i.estimate, "low": i.low, "high": i.high, "se": i.se, "df": i.df, "level": i.level, "method": i.method}

    return {
        "difference": one(c.difference),
        "relative": one(c.relative) if c.relative else None,
        "p": c.difference.p,
        "n_users": c.difference.n_users,
        "n_seeds": c.difference.n_seeds,
        "n_splits": c.n_splits,
        "seed_correlation": c.seed_correlation if math.isfinite(c.seed_correlation) else None,
        "conditions": list(c.conditions),
    }


def _safe(value: str) -> str:
    return f"'{value}" if value.startswith(_FORMULA) else value


def _one_line(value: str) -> str:
    """Returns a text without line ends and control characters: a cell is one line."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", value)


def _latex(value: str) -> str:
    return "".join(_LATEX.get(c, c) for c in _one_line(value))


def _markdown(value: str) -> str:
    text = _one_line(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|!])", r"\\\1", text)
