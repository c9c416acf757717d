"""From a results folder to its page."""

from pathlib import Path

from llmkt_ray.artifacts import ArtifactStore, FileStore, below
from llmkt_ray.report.answers import answers, factor_importance
from llmkt_ray.report.context import Context
from llmkt_ray.report.diagnosis import diagnose
from llmkt_ray.report.drill import drill
from llmkt_ray.report.export import write_files, write_verdict
from llmkt_ray.report.findings import find
from llmkt_ray.report.load import load
from llmkt_ray.report.page import render
from llmkt_ray.report.sections.alpha import alpha_curves
from llmkt_ray.report.sections.beyond import beyond_section
from llmkt_ray.report.sections.gains import attribution, gains
from llmkt_ray.report.sections.groups import demographics_section, user_types_section
from llmkt_ray.report.sections.quality import quality_section
from llmkt_ray.report.sections.questions import question_sections
from llmkt_ray.report.sections.references import other_metrics, references
from llmkt_ray.report.sections.sensitivity import heat_maps, importance_section
from llmkt_ray.report.sections.training import training_curves
from llmkt_ray.report.sections.users import users_section
from llmkt_ray.report.sections.words import answers_section, diagnosis_section
from llmkt_ray.report.verdict import verdict
from llmkt_ray.results.folder import beside
from llmkt_ray.results.transport import local_copy

PAGE = "report.html"


def build(folder: Path, artifacts: ArtifactStore | None = None) -> Path:
    """Writes `report.html` into a results folder, whole or partial, and returns its path.

    Beside it: `verdict.json`, `tables/` (CSV, LaTeX, Markdown), `figures/` (SVG, PDF), and `default.yaml` where there is one.

    Args:
        folder: the results folder.
        artifacts: the study's artifacts (splits, texts); None: the folder `artifacts` beside the results folder. Without them the page
            lacks what is beyond accuracy, user types, texts and items.

    Raises:
        StorageError: there are no results, or the page cannot be written.
    """
    folder = Path(folder)
    results = load(folder)
    findings = find(results)
    said = verdict(results, findings)
    fanova, ped = (factor_importance(results, findings, method) for method in ("fanova", "ped_anova"))
    made, found = answers(results, findings, fanova), diagnose(results, findings)
    context = Context(results, artifacts)
    made_sections = [
        gains(results, findings),
        attribution(results, findings),
        answers_section(made),
        alpha_curves(results, findings),
        heat_maps(results, findings),
        importance_section(results, fanova, ped),
        *question_sections(context, findings),
        training_curves(results, findings),
        diagnosis_section(found, len(findings)),
        references(results, findings),
        other_metrics(results, findings),
        beyond_section(context, findings),
        user_types_section(context, findings),
        demographics_section(context, findings),
        quality_section(context, findings),
        users_section(context, findings),
    ]
    sections = [section for section in made_sections if section is not None]
    write_files(folder, results, sections)
    write_verdict(folder, results, findings, said, made, found)
    FileStore(folder).write_bytes(PAGE, render(results, findings, said, sections, drill(context, findings)).encode())
    return folder / PAGE


def build_there(folder: str) -> str:
    """Builds the report of a results folder that may be a URI, puts it there, and returns its path or URI.

    Raises:
        StorageError: see `build`.
    """
    with local_copy(folder) as here:
        build(here, ArtifactStore(beside(folder, "artifacts")))
    return below(folder, PAGE)
