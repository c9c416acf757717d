"""The report of a study: one self-contained page, tables and figures for a paper, and comparing and merging studies."""

from llmkt_ray.report.build import build, build_there
from llmkt_ray.report.compare import Diff, diff, merge

__all__ = ["Diff", "build", "build_there", "diff", "merge"]
