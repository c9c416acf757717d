"""One section for each factor that a study varies: its levels side by side, and whether the best one can be told from the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmkt_ray.report.cells import claimed_at
from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding, of_contexts, unclaimed
from llmkt_ray.report.levels import Compared, Level, columns_of, compared, level_name, sentence
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import MOST_PANELS, Figure, Section, Table, over, sample
from llmkt_ray.report.text import count, p_value, plain


@dataclass(frozen=True)
class Question:
    """A question of METHOD.md, section 7, that a factor answers."""

    key: str
    title: str
    short: str
    lead: str


QUESTIONS: dict[str, Question] = {
    "reducer": Question("reducers", "Which reducer", "Reducers", "Q1: how the profile's embedding becomes the target of the layer."),
    "layer": Question("layers", "Which layer", "Layers", "Where in the model the knowledge comes in, at the prespecified alpha."),
    "schedule": Question(
        "schedules", "Schedule and switch", "Schedule",
        "Q3: when the transfer loss is on, when it is switched off, and what is handed over then.",
    ),
    "profiles": Question("llms", "Which LLM, which prompt", "LLM", "Q4: who wrote the profiles. A template without an LLM is one of them."),
    "encoder": Question("encoders", "Which text encoder", "Encoder", "Q4: what turns the text into a vector."),
    "loss": Question("losses", "Which transfer loss", "Loss", "How the reconstruction is measured, projected and weighed."),
    "training": Question("settings", "Training settings", "Settings", "Whether the gain depends on how the model is trained."),
}  # fmt: skip


def factor_sections(results: Results, findings: Sequence[Finding]) -> list[Section]:
    """Returns one section for each factor that at least one dataset and model varies."""
    at = claimed_at(results, (f.cell for f in findings))
    sections = [_section(results, findings, question, compared(results, findings, family), at) for family, question in QUESTIONS.items()]
    return [section for section in sections if section is not None]


def _section(results: Results, findings: Sequence[Finding], question: Question, found: Sequence[Compared], at: str) -> Section | None:
    drawn = [c for c in found if any(level.gain is not None and level.gain.relative is not None for level in c.levels)]
    if not found:
        return None
    every = [level.gain for c in drawn for level in c.levels if level.gain is not None]
    reach = charts.reach_of([c.relative for c in every if c.relative is not None], 2 * results.smallest_effect, 1.8)
    figures = []
    for one in drawn[:MOST_PANELS]:
        named = [(level_name(one, level), level, level.gain.relative) for level in one.levels if level.gain is not None]
        rows = [
            charts.Bar(charts.short(name, charts.MOST_LETTERS), "treated", relative, f"{name}: {_tip(level)}")
            for name, level, relative in named
            if relative is not None
        ]
        canvas = charts.intervals(
            f"{one.title}: gain over alpha0 by {columns_of(one)}",
            f"% of alpha0's {results.metric}; right is better",
            rows,
            reach,
            results.smallest_effect,
            as_percent=True,
        )
        figures.append(Figure(f"{question.key}-{one.model}-{one.dataset}", one.title, f"by {columns_of(one)}", canvas))
    caption = (
        f"{results.gain} of treated at {at} over the alpha0 of the same level, in % of alpha0; "
        "right of 0 is better. Marker: mean over seeds, users and the other factors. Line: 95 % interval. Grey: smaller than the smallest "
        f"effect of interest ({results.smallest_effect:.0%}).{results.compares} {sample(every)}"
        + (f" {MOST_PANELS} of {len(drawn)} are drawn; the table holds all." if len(drawn) > MOST_PANELS else "")
    )
    cells = of_contexts(findings)
    return Section(
        key=question.key,
        title=question.title,
        short=question.short,
        lead=question.lead,
        caption=caption,
        figures=tuple(figures),
        items=tuple(
            (asked, said, evidence + unclaimed(cells[one.dataset, one.model]))
            for one in found[:MOST_PANELS]
            for asked, said, evidence in filter(None, [sentence(results, one)])
        ),
        tables=(_table(results, found),),
    )


def _tip(level: Level) -> str:
    return f"treated {plain(level.test)}, over alpha0 {over(level.gain)}, {count(level.cells, 'cell')}"


def _table(results: Results, found: Sequence[Compared]) -> Table:
    rows = [
        (
            one.title, level_name(one, level), plain(level.valid), plain(level.test),
            over(level.gain), "best on validation" if place == one.best else over(level.to_best),
            p_value(level.p_to_best), str(level.gain.difference.n_seeds if level.gain is not None else "n/a"), str(level.cells),
        )
        for one in found for place, level in enumerate(one.levels)
    ]  # fmt: skip
    columns = (
        "where", "level", f"valid {results.metric}", f"test {results.metric}", "over its alpha0 [95 %]", "against the best level [95 %]",
        "p (Benjamini-Hochberg)", "seeds", "cells",
    )  # fmt: skip
    return Table("Every level", columns, (False, False, True, True, True, True, True, True, True), tuple(rows))
