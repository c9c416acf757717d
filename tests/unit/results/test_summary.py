"""LogLoss, of which less is better: the table at the end of a run shows a decrease as a gain."""

import pandas as pd
import pytest

from llmkt_ray.results.summary import summarise


def test_a_decrease_is_a_gain_in_the_table_of_a_run():
    cell = {
        "dataset": "d", "train_share": 1.0, "split_repetition": 0, "model": "DeepFM", "llm": "t", "encoder": "e", "reduction": "pca",
        "dims": 8, "loss": "mse", "schedule": "two_phase", "switch": 0.5, "hyperparameters": "{}", "epochs": 4, "batch_size": 8,
        "learning_rate": 0.1, "weight_decay": 0.0, "status": "done", "alpha_schedule": "constant",
    }  # fmt: skip
    arms = {"alpha0": (None, 0.0, 0.5), "shuffled": ("l", 0.5, 0.5), "treated": ("l", 0.5, 0.4)}
    rows = [{**cell, "arm": arm, "layer": layer, "alpha": alpha, "test_LogLoss": value} for arm, (layer, alpha, value) in arms.items()]
    (line,), _ = summarise(pd.DataFrame(rows), "LogLoss", 0.5)
    assert line.gain == pytest.approx(0.2)
    assert line.over_shuffled == pytest.approx(0.2)
