"""From a results folder to its page."""

from pathlib import Path

from llmkt_ray.artifacts import FileStore
from llmkt_ray.report.findings import find
from llmkt_ray.report.load import load
from llmkt_ray.report.page import render
from llmkt_ray.report.sections.alpha import alpha_curves
from llmkt_ray.report.sections.gains import attribution, gains
from llmkt_ray.report.sections.references import other_metrics, references
from llmkt_ray.report.sections.training import training_curves
from llmkt_ray.report.verdict import verdict

PAGE = "report.html"


def build(folder: Path) -> Path:
    """Writes `report.html` into a results folder, whole or partial, and returns its path.

    Raises:
        StorageError: there are no results, or the page cannot be written.
    """
    results = load(Path(folder))
    findings = find(results)
    made = [
        gains(results, findings),
        attribution(results, findings),
        alpha_curves(results, findings),
        training_curves(results, findings),
        references(results, findings),
        other_metrics(results, findings),
    ]
    page = render(results, findings, verdict(results, findings), [section for section in made if section is not None])
    FileStore(folder).write_bytes(PAGE, page.encode())
    return Path(folder) / PAGE
