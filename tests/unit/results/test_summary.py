"""The table at the end of a run: LogLoss, of which less is better, and one number for one seed."""

import json

import pandas as pd
import pytest

from llmkt_ray.errors import StorageError
from llmkt_ray.results.summary import summarise


def rows_of(arms, metric, **more):
    cell = {
        "dataset": "d", "train_share": 1.0, "split_repetition": 0, "model": "DeepFM", "llm": "t", "encoder": "e", "reduction": "pca",
        "dims": 8, "loss": "mse", "schedule": "two_phase", "switch": 0.5, "hyperparameters": "{}", "epochs": 4, "batch_size": 8,
        "learning_rate": 0.1, "weight_decay": 0.0, "status": "done", "alpha_schedule": "constant", "handover": "last", "optimizer": "reset",
        "seed_index": 0, "spec": spec_of(), **more,
    }  # fmt: skip
    return [
        {**cell, "trial_key": arm, "arm": arm, "layer": layer, "alpha": alpha, f"test_{metric}": value}
        for arm, (layer, alpha, value) in arms.items()
    ]


def spec_of(freeze=None, **more):
    return json.dumps({"schedule": {"freeze": freeze or {}}, "rungs": [], "targets_key": "a", **more})


def test_a_decrease_is_a_gain_in_the_table_of_a_run():
    arms = {"alpha0": (None, 0.0, 0.5), "shuffled": ("l", 0.5, 0.5), "treated": ("l", 0.5, 0.4)}
    (line,), _ = summarise(pd.DataFrame(rows_of(arms, "LogLoss")), "LogLoss", 0.5)
    assert line.gain == pytest.approx(0.2)
    assert line.over_shuffled == pytest.approx(0.2)


def test_two_trials_of_one_seed_are_told_and_not_averaged():
    """Profiles that were replaced in place leave rows whose labels are all the same; the rungs of a search change no number."""
    arms = {"alpha0": (None, 0.0, 0.5), "treated": ("l", 0.5, 0.4)}
    before = rows_of(arms, "NDCG@10")
    same = rows_of({"treated": ("l", 0.5, 0.4)}, "NDCG@10", spec=spec_of(rungs=[[1, 0.3]]))
    (line,), _ = summarise(pd.DataFrame([*before, *same]), "NDCG@10", 0.5)
    assert line.arms["alpha 0.5"] == 0.4
    other = rows_of({"treated": ("l", 0.5, 0.9)}, "NDCG@10", spec=spec_of(targets_key="b"))
    with pytest.raises(StorageError, match=r"both 'treated' of DeepFM on d at split 0, seed 0, .* differ in targets_key"):
        summarise(pd.DataFrame([*before, *other]), "NDCG@10", 0.5)


@pytest.mark.parametrize("other", [{"handover": "best_valid"}, {"spec": spec_of(freeze={"phase2": ["item_*"]})}])
def test_schedules_that_differ_in_any_setting_are_cells_of_their_own(other):
    arms = {"alpha0": (None, 0.0, 0.5), "treated": ("l", 0.5, 0.4)}
    twice = {"alpha0": (None, 0.0, 0.6), "treated": ("l", 0.5, 0.9)}
    lines, _ = summarise(pd.DataFrame([*rows_of(arms, "NDCG@10"), *rows_of(twice, "NDCG@10", **other)]), "NDCG@10", 0.5)
    assert sorted((line.arms["alpha0"], line.arms["alpha 0.5"]) for line in lines) == [(0.5, 0.4), (0.6, 0.9)]


def test_direct_input_is_that_of_the_cells_width():
    """Of one reducer at two widths there are two trials of each seed, and neither is the other's."""
    rows = []
    for dims, value in ((4, 0.2), (8, 0.3)):
        arms = {"input_init": (None, 0.0, value), "treated": ("l", 0.5, value + 0.1)}
        rows += rows_of(arms, "NDCG@10", dims=dims, spec=spec_of(targets_key=f"of {dims}"))
    lines, _ = summarise(pd.DataFrame(rows), "NDCG@10", 0.5)
    assert [(line.cell["dims"], line.arms["input_init"]) for line in lines] == [("4", 0.2), ("8", 0.3)]
    (line,), _ = summarise(pd.DataFrame([*rows_of({"input_init": (None, 0.0, 0.2)}, "NDCG@10", dims=4), rows[-1]]), "NDCG@10", 0.5)
    assert line.arms["input_init"] == 0.2, "the only width there is: the user table's, whatever the layer's"
