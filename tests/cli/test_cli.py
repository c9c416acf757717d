"""The command as a user meets it: exit codes, one message on stderr, tables on stdout."""

import os
import subprocess
import sys

import pytest
import yaml

from llmkt_ray import cli
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
    code, _, err = llmkt("layers", "BRP")
    assert code == 2
    assert "did you mean 'BPR'" in err


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
