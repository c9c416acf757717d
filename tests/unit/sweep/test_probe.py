"""`llmkt layers MODEL --probe STUDY`: what it takes for a model, and beside which runs it may look."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from llmkt_ray.errors import StudyError
from llmkt_ray.results.folder import claim, locked, study_folder
from llmkt_ray.study_file import load_study
from llmkt_ray.sweep.probe import named_model, probe_knowledge, probe_study
from tests.tiny import study_text


def test_a_study_that_has_run_and_runs_can_be_probed(tmp_path: Path) -> None:
    """A probe makes artifacts alone: whose the results folder is, and who works in it, is nothing to it."""
    path = tmp_path / "study.yaml"
    path.write_text(study_text(tmp_path))
    study = load_study(path)
    claim(study)
    with locked(study_folder(study)):
        taps, known = probe_knowledge(probe_study(str(path), named_model("BPR", allow_code=False)), Console(file=io.StringIO()))
    assert "user_embedding" in {tap.name for tap in taps}
    assert known


@pytest.mark.parametrize(
    ("model", "told"),
    [("", "model '' is not known"), (":", "the form is package.module:Class"), (":X", "model class ':X' cannot be imported")],
)
def test_what_is_no_model_s_name_is_one_message(model: str, told: str) -> None:
    with pytest.raises(StudyError, match=told):
        named_model(model, allow_code=True)
