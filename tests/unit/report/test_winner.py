"""`llmkt export`: a trial of a real study, trained again from its row, evaluated by RecBole alone."""

import json
import shutil
import sys

import pytest

from llmkt_ray import cli
from llmkt_ray.errors import StorageError, TrainingError
from llmkt_ray.report import winner
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep.run import run_study
from tests.tiny import tiny_study
from tests.unit.report.synthetic import World, write


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The results folder of a finished study of six trials, and its rows."""
    root = tmp_path_factory.mktemp("study")
    run_study(tiny_study(root), executor="loop")
    return root / "results/tiny", Ledger(root / "results/tiny").trials()


def test_the_best_trial_leaves_and_recbole_agrees(study, tmp_path, monkeypatch, capsys):
    folder, rows = study
    monkeypatch.chdir(folder.parent.parent)
    monkeypatch.setattr(sys, "argv", ["llmkt", "export", "best", "--to", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert not ended.value.code, said.err
    treated = rows[rows["arm"] == "treated"]
    best = treated.loc[treated["valid_NDCG@10"].idxmax()]
    assert f"trial {best['trial_key']} in " in said.out
    assert json.loads((tmp_path / "out/export.json").read_text())["test"]["NDCG@10"] == pytest.approx(best["test_NDCG@10"], abs=1e-12)
    assert f"NDCG@10: {best['test_NDCG@10']:.6f} in the study, {best['test_NDCG@10']:.6f} by RecBole alone" in said.out.replace("\n", " ")


def test_the_best_is_the_best_of_profiles_and_alpha_together(tmp_path):
    """At alpha 0.5 one set of profiles helps most and the other harms: the mean of both is no configuration."""
    moved = {("good", 0.3): 0.1, ("good", 0.5): 0.5, ("bad", 0.3): 0.1, ("bad", 0.5): -0.9}
    world = World(
        models={"MultiVAE": 0.2}, llms=("good", "bad"), alphas=(0.3, 0.5), n_users=50, epochs=4, seed_sd=0.001, splits=2,
        treated=lambda model, alpha, layer: 0.0, moved=lambda spec: moved[str(spec.factors["llm"]), spec.alpha],
    )  # fmt: skip
    spec, row = winner.find_trial("best", write(tmp_path, world))
    assert (spec.arm, row["llm"], row["alpha"]) == ("treated", "good", 0.5)


def test_a_key_may_be_shortened_but_must_name_one_trial(study):
    folder, rows = study
    spec, row = winner.find_trial(rows["trial_key"].iloc[0][:10], folder)
    assert (spec.key, row["trial_key"]) == (rows["trial_key"].iloc[0],) * 2
    with pytest.raises(StorageError, match=r"the keys of 6 trials in .* begin with ''; give more of one of these: ") as ambiguous:
        winner.find_trial("", folder)
    assert all(key in str(ambiguous.value) for key in rows["trial_key"])
    with pytest.raises(StorageError, match="there is no trial 'zz'"):
        winner.find_trial("zz", folder)


def test_a_filled_folder_and_absent_artifacts_are_refused(study, tmp_path):
    folder, _ = study
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine.txt").touch()
    with pytest.raises(StorageError, match="is not empty"):
        winner.export_trial("best", folder, tmp_path / "a")
    shutil.copytree(folder, tmp_path / "alone")
    with pytest.raises(StorageError, match="artifacts are not in"):
        winner.export_trial("best", tmp_path / "alone", tmp_path / "b")


def test_other_numbers_than_the_row_has_are_not_exported(study, tmp_path, monkeypatch):
    folder, _ = study
    spec, row = winner.find_trial("best", folder)
    monkeypatch.setattr(winner, "find_trial", lambda trial, where: (spec, row.replace({row["test_NDCG@10"]: 0.987})))
    with pytest.raises(TrainingError, match=r"has other numbers than its row: NDCG@10 .* instead of 0\.987"):
        winner.export_trial("best", folder, tmp_path / "c")
    assert not (tmp_path / "c/model.pth").exists()


def test_recbole_is_asked_without_llmkt_ray(study, tmp_path):
    """If the script needed llmkt_ray after all, the check itself would fail."""
    folder, _ = study
    winner.export_trial("best", folder, tmp_path / "d")
    script = tmp_path / "d/recommend.py"
    script.write_text(script.read_text().replace("import yaml\n", "import yaml\nimport llmkt_ray.errors\n"))
    with pytest.raises(TrainingError, match="llmkt_ray"):
        winner.evaluate_alone(tmp_path / "d")


def test_a_file_is_no_folder_to_export_to(study, tmp_path):
    folder, rows = study
    (tmp_path / "out").write_text("kept")
    with pytest.raises(StorageError, match=r"out is a file, not a folder; give a new folder with --to"):
        winner.export_trial(rows["trial_key"].iloc[0], folder, tmp_path / "out")
