"""The command as a user meets it: exit codes, one message on stderr, tables on stdout."""

import os
import subprocess
import sys

import pytest
import yaml

from llmkt_ray import cli
from llmkt_ray.api import Study
from tests.tiny import study_text


@pytest.fixture
def study(tmp_path):
    """The path of a study file, and a way to change it."""
    path = tmp_path / "study.yaml"
    path.write_text(study_text(tmp_path))
    return path


def change(path, **sections):
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections))


@pytest.fixture
def llmkt(monkeypatch, capsys):
    """Runs the command in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["llmkt", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def test_check_says_everything_at_once_without_a_traceback(study, llmkt):
    assert llmkt("check", study)[:2] == (0, f"{study}: no problems found\n")
    change(study, models=["NeuMFF"], evaluation={"metrics": ["NDGC@10"], "select_on": "NDGC@10"})
    code, out, err = llmkt("check", study)
    assert (code, out) == (2, "")
    assert "has 2 errors" in err
    assert "did you mean 'NeuMF'" in err
    assert "did you mean 'NDCG@10'" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["check", "plan", "run", "status", "report"])
def test_a_missing_file_is_one_message(tmp_path, llmkt, command):
    code, _, err = llmkt(command, tmp_path / "nowhere.yaml")
    assert code == 2
    assert "there is no file" in err
    assert "Traceback" not in err


def test_a_study_from_plan_to_report(study, tmp_path, llmkt):
    code, out, _ = llmkt("plan", study)
    assert code == 0
    assert "6 trials, 6 to do" in out
    assert "user_embedding" in out
    assert not (tmp_path / "results").exists(), "planning starts nothing"

    code, out, err = llmkt("status", study)
    assert (code, "0 done, 0 failed, planned unknown" in out) == (0, True)

    code, out, err = llmkt("run", study, "--executor", "loop")
    assert code == 0, err
    assert "NDCG@10 on test, mean over seeds" in out
    assert "reference lines on toy: Pop" in out
    assert "6 trials run now, 6 done and 0 failed in all" in out
    assert "trials: 6 of 6" in err
    assert (tmp_path / "results" / "tiny" / "report.html").exists()

    code, out, err = llmkt("run", study, "--executor", "loop")
    assert code == 0
    assert "nothing was missing" in out

    assert "6 trials, 0 to do" in llmkt("plan", study)[1]
    assert "6 done, 0 failed, planned 6" in llmkt("status", study)[1]
    report = tmp_path / "results" / "tiny" / "report.html"
    report.unlink()
    assert llmkt("report", study)[1].strip() == str(report)
    assert report.exists()


def test_failed_trials_make_exit_code_1_and_a_report_all_the_same(study, tmp_path, llmkt):
    change(study, models=[{"name": "BPR", "epochs": 4, "learning_rate": 1e30, "hyperparameters": {"embedding_size": 8}}])
    code, out, err = llmkt("run", study, "--executor", "loop")
    assert code == 1
    assert "1 done and 5 failed in all" in out
    assert "failed: toy BPR" in err
    assert (tmp_path / "results" / "tiny" / "report.html").exists()


def test_a_changed_study_does_not_mix_with_old_results(study, llmkt):
    assert llmkt("run", study, "--executor", "loop")[0] == 0
    change(study, seeds=2)
    code, _, err = llmkt("run", study, "--executor", "loop")
    assert code == 2
    assert "belongs to another study" in err
    assert "seeds" in err


def test_a_report_of_nothing(study, llmkt):
    code, _, err = llmkt("report", study)
    assert code == 2
    assert "there are no results in" in err


def test_layers_by_name_with_their_alignment(llmkt):
    code, out, _ = llmkt("layers", "BPR")
    assert code == 0
    assert "user_embedding" in out
    refused = [line.split()[-1] for line in out.splitlines() if " unusable " in line]
    assert refused
    for mark in refused:  # each with its reason on a line of its own, whatever the width of the terminal
        assert sum(line.startswith(f"{mark} ") for line in out.splitlines()) == 1
    code, _, err = llmkt("layers", "BRP")
    assert code == 2
    assert "did you mean 'BPR'" in err


def test_layers_after_plain_training_with_what_they_know(study, tmp_path, llmkt, monkeypatch):
    code, out, err = llmkt("layers", "BPR", "--probe", study)
    assert code == 0, err
    assert "training: 4 of 4" in err
    assert "taps: 1 of 1" in err
    (line,) = [line.split() for line in out.splitlines() if " user_embedding " in line and "rows" in line]
    assert -1 < float(line[-1]) <= 1
    assert 0 <= float(line[-2]) <= 1
    assert "after plain training on toy" in out
    assert not (tmp_path / "results" / "tiny").exists(), "nothing of the study is run"
    monkeypatch.chdir(tmp_path)
    code, _, err = llmkt("layers", "BPR", "--probe", "ml-100m")
    assert code == 2
    assert "did you mean 'ml-100k'" in err


def test_layers_of_a_class_of_ones_own_only_with_allow_code(llmkt):
    path = "recbole.model.general_recommender.bpr:BPR"
    code, _, err = llmkt("layers", path)
    assert code == 2
    assert "--allow-code" in err
    code, out, err = llmkt("layers", path, "--allow-code")
    assert code == 0, err
    assert "user_embedding" in out


OWN = """
import torch
from torch import nn
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.loss import BPRLoss
from recbole.utils import InputType


class Gated(GeneralRecommender):
    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.user, self.item = nn.Embedding(self.n_users, config["width"]), nn.Embedding(self.n_items, config["width"])
        self.gate = nn.Linear(config["width"], config["width"])
        self.loss = BPRLoss()

    def forward(self, user):
        return self.gate(self.user(user)).tanh()

    def calculate_loss(self, interaction):
        user = self.forward(interaction[self.USER_ID])
        return self.loss((user * self.item(interaction[self.ITEM_ID])).sum(1), (user * self.item(interaction[self.NEG_ITEM_ID])).sum(1))

    def full_sort_predict(self, interaction):
        return (self.forward(interaction[self.USER_ID]) @ self.item.weight.T).view(-1)
"""


def test_a_model_class_of_ones_own_is_a_row_like_any_other_and_runs_only_with_allow_code(study, tmp_path, llmkt, monkeypatch):
    (tmp_path / "my_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    mine = {"name": "Gated", "class_path": "my_models:Gated", "layers": ["gate"], "epochs": 2, "hyperparameters": {"width": 8}}
    change(study, models=[mine], transfer={"alphas": [0.5]})
    code, _, err = llmkt("run", study, "--executor", "loop")
    assert code == 2
    assert "--allow-code" in err
    assert "my_models" not in sys.modules, "nothing of it was imported"
    code, _, err = llmkt("run", study, "--executor", "loop", "--allow-code")
    assert code == 0, err
    rows = Study.from_yaml(study).trials().set_index("arm")
    assert set(rows.index) == {"baseline", "alpha0", "shuffled", "treated", "reference"}
    assert set(rows["status"]) == {"done"}
    assert rows.loc["treated", "layer"] == "gate"


def test_a_smoke_run_is_four_trials_in_a_folder_of_its_own(study, tmp_path, llmkt):
    change(study, models=[{"name": "BPR", "epochs": 50, "hyperparameters": {"embedding_size": 8}}], seeds=3)
    code, out, err = llmkt("run", study, "--smoke", "--executor", "loop")
    assert code == 0, err
    assert "4 trials run now" in out
    assert (tmp_path / "results" / "tiny-smoke" / "report.html").exists()
    assert not (tmp_path / "results" / "tiny").exists()


def test_an_unknown_option_is_explained(study, llmkt):
    code, _, err = llmkt("run", study, "--workerss", "2")
    assert code == 2
    assert "workerss" in err


def test_the_installed_command_keeps_stdout_clean(study):
    """As a user types it, on a pipe: progress on stderr, results on stdout, no colour codes."""
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "llmkt_ray.cli", "run", str(study), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=study.parent, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "6 trials run now" in done.stdout
    assert "\x1b[" not in done.stdout + done.stderr
    for noise in ("ray.init", "Tune", "WARNING", "Warning"):
        assert noise not in done.stdout + done.stderr
