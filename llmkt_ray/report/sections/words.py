"""Sections that are sentences: answers with their evidence, and the diagnosis."""

from collections.abc import Sequence

from llmkt_ray.report.answers import Answer
from llmkt_ray.report.diagnosis import Diagnosis, summary
from llmkt_ray.report.sections.base import Section, Table

MOST_CARDS = 3
"""Answers to one kind of question that are shown as cards; more become a table."""


def answers_section(made: Sequence[Answer]) -> Section | None:
    """Returns the answers in sentences."""
    if not made:
        return None
    topics: dict[str, list[Answer]] = {}
    for answer in made:
        topics.setdefault(answer.topic, []).append(answer)
    cards = [a for group in topics.values() if len(group) <= MOST_CARDS for a in group]
    tables = [
        Table(topic, ("where", "answer", "evidence"), (False,) * 3, tuple((a.subject, a.answer, a.evidence) for a in group))
        for topic, group in topics.items()
        if len(group) > MOST_CARDS
    ]
    return Section(
        key="answers",
        title="Answers",
        short="Answers",
        lead="What the rows say to each question, and what that rests on.",
        items=tuple((a.question, a.answer, a.evidence) for a in cards),
        tables=tuple(tables),
    )


def diagnosis_section(found: Sequence[Diagnosis], cells: int) -> Section | None:
    """Returns the failure signatures with their remedies."""
    if not cells:
        return None
    rows = tuple((d.cell, d.signature, d.evidence, d.cause, d.remedy) for d in found)
    columns = ("cell", "signature", "evidence", "likeliest cause", "what to try")
    tables = (Table("Signatures", columns, (False,) * 5, rows),) if rows else ()
    return Section("diagnosis", "Diagnosis", "Diagnosis", summary(found, cells), tables=tables)
