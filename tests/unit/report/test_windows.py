"""A cell is compared with the baseline that chose its epoch among as many, and its claim is at the alpha it was run at."""

import re
from pathlib import Path

import pytest

from llmkt_ray.report import build
from llmkt_ray.report.cells import find_cells
from llmkt_ray.report.findings import find
from llmkt_ray.report.load import load
from llmkt_ray.report.sections.gains import gains
from llmkt_ray.results.card import write_card
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study import StudyConfig, TransferConfig
from llmkt_ray.sweep.plan import selection_window
from llmkt_ray.training.spec import TrialSpec
from tests.unit.report.synthetic import METRICS, World, result_of, study_of, write, write_artifacts

SCHEDULES = [{"switch": 0.25}, {"switch": 0.75}, {"kind": "joint"}, {"kind": "pretrain", "switch": 0.75}]


def trials(world: World, study: StudyConfig) -> list[TrialSpec]:
    made: dict[str, TrialSpec] = {}
    for schedule in study.transfer.schedule:
        for seed in range(world.seeds):
            base = {
                "study_seed": study.seed, "dataset": "ml-1m", "split_key": "s", "model": "MultiVAE", "epochs": 20, "batch_size": 512,
                "learning_rate": 0.001, "metrics": METRICS, "select_on": "NDCG@10", "seed_index": seed,
                "factors": {"train_share": 1.0, "split_repetition": 0},
            }  # fmt: skip
            alphas, claim = study.transfer.levels(schedule)
            tapped = {**base, "schedule": schedule, "layer": "encoder.1", "targets_key": "t"}
            specs = [
                TrialSpec(**base, arm="baseline", schedule=selection_window(schedule)),
                TrialSpec(**base, arm="alpha0", schedule=schedule),
                TrialSpec(**tapped, arm="shuffled", alpha=claim),
                *(TrialSpec(**tapped, arm="treated", alpha=alpha) for alpha in alphas),
            ]
            made |= {spec.key: spec for spec in specs}
    return list(made.values())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("windows")
    world = World(models={"MultiVAE": 0.2}, seeds=3, n_users=60, references={})
    plain = study_of(world)
    transfer = TransferConfig.model_validate({"alphas": (0.3, 0.5), "layers": ("encoder.1",), "schedule": SCHEDULES})
    study = plain.model_copy(update={"transfer": transfer})
    for spec in trials(world, study):
        Ledger(folder).record(result_of(world, spec), study.key)
    write_card(str(folder), study, {"datasets": [], "profiles": [], "cells": [], "planned_trials": 0})
    return load(folder)


def test_each_cell_has_the_baseline_of_its_window(results):
    cells = {(cell.factors["schedule"], cell.factors["switch"]): cell for cell in find_cells(results)}
    assert set(cells) == {("two_phase", 0.25), ("two_phase", 0.75), ("joint", 0.5), ("pretrain", 0.75)}
    rows = results.trials
    for (kind, switch), cell in cells.items():
        baseline = rows.loc[list(cell.controls["baseline"].rows.values())]
        assert len(baseline) == 3
        assert set(baseline["schedule"]) == {"joint" if kind == "joint" else "two_phase"}
        if kind != "joint":
            assert set(baseline["switch"]) == {switch}
    assert cells["pretrain", 0.75].controls["baseline"] == cells["two_phase", 0.75].controls["baseline"]


def test_a_pretrained_cell_is_claimed_at_alpha_1(results):
    found = {finding.cell.factors["schedule"]: finding for finding in find(results)}
    pretrain, two_phase = found["pretrain"], found["two_phase"]
    assert (pretrain.cell.claim_alpha, two_phase.cell.claim_alpha) == (1.0, 0.5)
    assert set(pretrain.cell.treated) == {1.0}
    assert {"baseline", "alpha0", "shuffled"} <= set(pretrain.contrasts)
    assert "treated" in pretrain.levels
    assert not any("has not finished" in flag for flag in pretrain.flags)


def test_the_page_of_a_pretrained_cell_says_alpha_1_and_names_its_users(tmp_path):
    """Its treated trials have no alpha but 1: neither the words of the page nor its users may look for the study's own."""
    world = World(models={"MultiVAE": 0.2}, n_users=60, epochs=8, schedules=({"kind": "pretrain"},), references={})
    write_artifacts(tmp_path / "artifacts", world, lambda item: f"Film {item}", lambda user: f"Likes film number {user}.")
    text = re.sub(r"<[^>]+>", "", build(write(tmp_path / "study", world)).read_text())
    assert "Users who gained and users who lost" in text
    assert "of treated at alpha 1 over each control" in text
    assert "treated at alpha 0.5" not in text


def test_where_schedules_differ_each_alpha_is_named(results):
    findings = find(results)
    section = gains(results, findings)
    assert section is not None
    assert "at alpha 0.5 (1 where the schedule is pretrain)" in section.caption
    named = {finding.cell.factors["schedule"]: f"gain of treated at alpha {finding.cell.claim_alpha:g}," for finding in findings}
    assert named["pretrain"] == "gain of treated at alpha 1,"
    for finding in findings:
        (figure,) = [figure for figure in section.figures if figure.name == f"gains-{finding.cell.number}"]
        assert named[finding.cell.factors["schedule"]] in figure.canvas.title
