"""The table at the end of a run can be read whole whatever the terminal's width."""

import io

import pandas as pd
import pytest
from rich.console import Console

from llmkt_ray import show
from llmkt_ray.results.summary import SummaryLine
from tests.tiny import tiny_study

ARMS = {"baseline": 0.3407, "alpha0": 0.335, "alpha 0.3": 0.3409, "alpha 0.5": 0.3445, "shuffled": 0.3383, "template": 0.334}


@pytest.mark.parametrize("width", [200, 80, 40])
def test_no_number_is_cut(tmp_path, monkeypatch, width):
    cells = [{"model": model, "llm": llm} for model in ("MultiVAE", "SimpleX") for llm in ("a [bold] name of a model", "another such name")]
    lines = tuple(SummaryLine(cell, {arm: value + at / 100 for arm, value in ARMS.items()}, 0.028, -0.017) for at, cell in enumerate(cells))
    monkeypatch.setattr(show, "summarise", lambda *given: (lines, {}))
    console = Console(width=width, file=io.StringIO())
    for part in show.summary_tables(tiny_study(tmp_path), pd.DataFrame(), width):
        console.print(part)
    said = console.file.getvalue()
    assert "\u2026" not in said
    for line in lines:
        assert all(f"{value:.4f}" in said for value in line.arms.values())
        assert all(label in said for label in line.cell.values())
    assert said.count("+2.8%") == said.count("-1.7%") == 4
    assert max(map(len, said.splitlines())) <= width
