import numpy as np
import pandas as pd
import pytest

from llmkt_ray.stats.importance import MOST_ROWS, importance


def _rows(n_seeds=6, noise=0.001):
    rng = np.random.default_rng(1)
    rows = [
        {"alpha": a, "layer": layer, "idle": idle, "seed": s, "value": 0.2 + 0.05 * (layer == "b") + 0.01 * a + rng.normal(0, noise)}
        for a in (0.1, 0.3, 0.5, 0.7) for layer in "abc" for idle in ("x", "y") for s in range(n_seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("method", ["fanova", "ped_anova"])
def test_the_planted_factor_matters_most_and_the_seed_is_the_floor(method):
    shares = importance(_rows(), "value", method)
    assert set(list(shares)[:2]) == {"layer", "alpha"}
    if method == "fanova":  # of the whole range; PED-ANOVA speaks of the best tenth, which holds one layer and one alpha
        assert next(iter(shares)) == "layer"
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["idle"] <= shares["layer"] / 5
    assert shares["seed"] <= shares["layer"] / 5


def test_pure_noise_leaves_no_factor_far_above_the_seed():
    rows = _rows()
    rows["value"] = np.random.default_rng(2).normal(size=len(rows))
    shares = importance(rows, "value")
    assert shares["layer"] < 3 * shares["seed"] + 0.1


def test_it_repeats_itself():
    assert importance(_rows(), "value") == importance(_rows(), "value")


def test_nothing_varies():
    assert importance(pd.DataFrame({"alpha": [0.5] * 5, "seed": [0] * 5, "value": [1.0] * 5}), "value") == {}


def test_many_rows_are_sampled():
    rows = pd.concat([_rows(60)] * 2)
    assert len(rows) > MOST_ROWS
    assert next(iter(importance(rows, "value", "ped_anova"))) in ("layer", "alpha")


def test_without_a_seed_there_is_no_floor():
    with pytest.raises(ValueError, match="noise floor"):
        importance(_rows().drop(columns="seed"), "value")
    with pytest.raises(ValueError, match="method must be one of fanova, ped_anova, but got 'x'"):
        importance(_rows(), "value", "x")
