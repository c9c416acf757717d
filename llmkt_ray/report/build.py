"""From a results folder to its page."""

from collections.abc import Sequence
from pathlib import Path

from llmkt_ray.artifacts import FileStore
from llmkt_ray.report.answers import answers, factor_importance
from llmkt_ray.report.diagnosis import diagnose
from llmkt_ray.report.findings import Finding, find
from llmkt_ray.report.load import Results, load
from llmkt_ray.report.page import render
from llmkt_ray.report.sections.alpha import alpha_curves
from llmkt_ray.report.sections.base import Section
from llmkt_ray.report.sections.gains import attribution, gains
from llmkt_ray.report.sections.references import other_metrics, references
from llmkt_ray.report.sections.sensitivity import heat_maps, importance_section
from llmkt_ray.report.sections.training import training_curves
from llmkt_ray.report.sections.words import answers_section, diagnosis_section
from llmkt_ray.report.verdict import verdict

PAGE = "report.html"


def build(folder: Path) -> Path:
    """Writes `report.html` into a results folder, whole or partial, and returns its path.

    Raises:
        StorageError: there are no results, or the page cannot be written.
    """
    results = load(Path(folder))
    findings = find(results)
    page = render(results, findings, verdict(results, findings), make_sections(results, findings))
    FileStore(folder).write_bytes(PAGE, page.encode())
    return Path(folder) / PAGE


def make_sections(results: Results, findings: Sequence[Finding]) -> list[Section]:
    """Returns the sections that the study holds data for, in the order of the page."""
    fanova, ped = (factor_importance(results, findings, method) for method in ("fanova", "ped_anova"))
    made = [
        gains(results, findings),
        attribution(results, findings),
        answers_section(answers(results, findings, fanova)),
        alpha_curves(results, findings),
        heat_maps(results, findings),
        importance_section(results, fanova, ped),
        training_curves(results, findings),
        diagnosis_section(diagnose(results, findings), len(findings)),
        references(results, findings),
        other_metrics(results, findings),
    ]
    return [section for section in made if section is not None]
