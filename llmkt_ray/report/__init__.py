"""The report of a study: one self-contained page, and tables and figures for a paper."""

from llmkt_ray.report.build import build

__all__ = ["build"]
