"""A study from Python: whose results it shows, what it forgets, and what it refuses before it starts."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmkt_ray.api import Study
from llmkt_ray.cli import app
from llmkt_ray.data.split import prepare
from llmkt_ray.errors import ProfileError, ResourceError, StorageError, StudyError
from llmkt_ray.profiles.generate import generate
from llmkt_ray.results.card import write_card
from llmkt_ray.results.folder import claim, study_folder
from llmkt_ray.sweep.run import store_of
from tests.tiny import tiny_study


def test_another_study_s_results_are_not_shown_as_this_one_s(tmp_path: Path) -> None:
    ran, other = tiny_study(tmp_path), tiny_study(tmp_path, seeds=3)
    claim(ran)
    write_card(study_folder(ran), ran, {"planned_trials": 6})
    assert Study(ran).status().problem is None
    assert "belongs to another study" in str(Study(other).status().problem)
    with pytest.raises(StorageError, match=rf"belongs to another study .* run: llmkt report {study_folder(ran)}"):
        Study(other).report()


def test_a_user_is_forgotten_in_the_pages_of_all_studies_and_an_unknown_one_in_none(tmp_path: Path) -> None:
    first, second = Study(tiny_study(tmp_path)), Study(tiny_study(tmp_path, name="second"))
    store = store_of(first.config)
    data = prepare(first.config.datasets[0], study_seed=first.config.seed, store=store)
    generate(first.config.profiles[0], data, store, study_seed=first.config.seed)
    pages = [Path(study_folder(study.config)) / "report.html" for study in (first, second)]
    for study, page in zip((first, second), pages, strict=True):
        claim(study.config)
        page.write_text("texts of users")
    foreign = tmp_path / "results" / "no-study" / "report.html"
    foreign.parent.mkdir()
    foreign.write_text("somebody else's")

    with pytest.raises(ProfileError, match="no profiles of this study are of a user 'typo': users are for example"):
        first.forget("typo")
    assert all(page.exists() for page in pages)
    done = first.forget("u7")
    assert (done.texts, sorted(done.pages), done.pages_left) == (1, sorted(map(str, pages)), ())
    assert not any(page.exists() for page in pages)
    assert foreign.exists()
    pages[1].write_text("left by an interruption")
    assert first.forget("u7").pages == (str(pages[1]),), "forgotten before: what shows texts goes all the same"


def test_a_loop_on_a_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"executor 'loop' .* an address was given \(10.0.0.1:6379\); leave --address out"):
        Study(tiny_study(tmp_path)).run(executor="loop", address="10.0.0.1:6379")
    assert not (tmp_path / "results").exists()


def test_a_storage_that_is_none_is_told_with_the_other_errors(tmp_path: Path) -> None:
    study = Study(tiny_study(tmp_path, storage="nonsense://bucket/x", models=["BRP"]))
    with pytest.raises(StudyError) as told:
        study.check()
    assert "model 'BRP' is not known; did you mean 'BPR'" in str(told.value)
    assert "storage 'nonsense://bucket/x" in str(told.value)


def test_the_help_of_check_says_what_is_told_together() -> None:
    said = " ".join(CliRunner().invoke(app, ["check", "--help"]).output.split())
    assert "First every error of the file itself" in said
