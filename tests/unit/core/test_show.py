"""Tables for the terminal show every name as it is, and every figure whole."""

import io
from pathlib import Path

from rich.console import Console

from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.show import layer_table, plan_tables, quality_tables
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.progress import Progress
from llmkt_ray.sweep.run import store_of
from tests.tiny import tiny_study

HOSTILE = "Mine[/red][bold]"
OWN = {"name": HOSTILE, "class_path": "recbole.model.general_recommender.bpr:BPR", "epochs": 4, "hyperparameters": {"embedding_size": 8}}


def printed(*parts: object, width: int = 200) -> str:
    file = io.StringIO()
    for part in parts:
        Console(file=file, width=width).print(part)
    return file.getvalue()


def test_a_model_s_name_is_no_markup(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, models=[OWN], profiles=[{"llm": "template", "name": "Texts[/]"}])
    plan = make_plan(study, store_of(study))
    text = printed(*plan_tables(plan, Ledger(study_folder(study))))
    assert text.count(HOSTILE) == 1 + len({(spec.model, spec.arm) for spec in plan.trials if spec.model == HOSTILE})
    assert "Texts[/]" in text
    assert f"taps of {HOSTILE}" in printed(*layer_table(HOSTILE, ()))


def test_a_progress_line_is_no_markup() -> None:
    file = io.StringIO()
    progress = Progress(Console(file=file, width=200, force_terminal=True))
    with progress.stage("profiles", 2):
        progress.artifact_made(HOSTILE)
        assert progress._bar is not None
        progress._bar.refresh()
    assert HOSTILE in file.getvalue()


def test_the_thirds_of_a_measure_are_whole_at_80_columns() -> None:
    kinds = ("history size", "genre entropy", "mainstreamness", "mean rating", "rating spread")
    thirds = {"low": 0.111, "middle": 0.222, "high": 0.333}
    measure = {"all": 0.2, "by": dict.fromkeys(kinds, thirds)}
    notes = {
        "with_profile": 9,
        "users": 9,
        "coverage": 1.0,
        "quality": {"errors": {}, "measures": {"foreign titles": measure}, "held_out_titles": {"observed": 0.0, "expected": 0.1}},
    }
    text = printed(*quality_tables([("template", notes)]), width=80)
    assert "…" not in text
    assert [text.count(figure) for figure in ("0.11", "0.22", "0.33")] == [5, 5, 5]
