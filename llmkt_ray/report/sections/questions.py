"""The questions of METHOD.md, section 7: each has a section, which appears when the study holds the data for it."""

from collections.abc import Sequence

from llmkt_ray.report.context import Context
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.sections.base import Section
from llmkt_ray.report.sections.breadth import breadth_section
from llmkt_ray.report.sections.convergence import convergence_section
from llmkt_ray.report.sections.cost import cost_section
from llmkt_ray.report.sections.factors import factor_sections
from llmkt_ray.report.sections.regret import regret_section
from llmkt_ray.report.sections.size import size_section
from llmkt_ray.report.sections.sources import interactions_section, sources_section
from llmkt_ray.report.sections.sparsity import sparsity_section
from llmkt_ray.report.sections.types import profile_types_section


def question_sections(context: Context, findings: Sequence[Finding]) -> list[Section | None]:
    """Returns the sections in the order of the questions; None where the study does not hold the data."""
    results = context.results
    return [
        *factor_sections(results, findings),
        sparsity_section(results, findings),
        size_section(results, findings),
        sources_section(results, findings),
        interactions_section(results, findings),
        profile_types_section(context, findings),
        breadth_section(results, findings),
        regret_section(results, findings),
        convergence_section(results, findings),
        cost_section(results, findings),
    ]
