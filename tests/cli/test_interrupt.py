"""Ctrl-C is one line that says where the study stands, and exit code 130."""

import sys

import pytest

from llmkt_ray import cli
from llmkt_ray.api import Study
from tests.tiny import study_text


def test_an_interrupted_run_says_how_far_it_came_and_what_to_do(tmp_path, monkeypatch, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(study_text(tmp_path))
    Study.from_yaml(path).run(executor="loop", limit=2)

    def interrupted(self, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["llmkt", "run", str(path)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "llmkt: interrupted, 2 of 6 trials done; run the same command again to go on\n"
