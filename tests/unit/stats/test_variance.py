import numpy as np
import pandas as pd
import pytest

from llmkt_ray.stats.variance import REST, interactions, variance_shares


def _rows(seeds=8, noise=1.0, together=0.0, llm=(0.0, 2.0, 4.0), prompt=(0.0, 1.0), seed_sd=0.0):
    rng = np.random.default_rng(1)
    of_seed = rng.normal(0, seed_sd, seeds)
    return pd.DataFrame(
        {"llm": f"l{a}", "prompt": f"p{b}", "seed": s, "value": x + y + of_seed[s] + together * (a == 1) * (b == 1) + rng.normal(0, noise)}
        for a, x in enumerate(llm) for b, y in enumerate(prompt) for s in range(seeds)
    )  # fmt: skip


def test_planted_shares_of_the_variance_are_found():
    """Variances of the levels: LLM 8/3, prompt 1/4, seed 0, noise 1: 68 %, 6 %, 0 % and 26 %, by many seeds."""
    shares = {s.name: s for s in variance_shares(_rows(seeds=35), "value")}
    assert shares["llm"].share == pytest.approx(8 / 3 / (8 / 3 + 0.25 + 1), abs=0.06)
    assert shares["prompt"].share == pytest.approx(0.25 / (8 / 3 + 0.25 + 1), abs=0.04)
    assert shares["seed"].share < 0.03
    assert sum(s.share for s in shares.values()) == pytest.approx(1)
    assert shares["llm"].p < 0.001 < shares["seed"].p


def test_pure_noise_has_no_share():
    """Without the correction for its levels a factor of 8 levels would seem to explain 7/47 of pure noise."""
    shares = [
        {s.name: s.share for s in variance_shares(_rows(llm=(0, 0, 0), prompt=(0, 0)).assign(value=values), "value")}
        for values in np.random.default_rng(2).normal(size=(40, 48))
    ]
    assert np.mean([s["seed"] for s in shares]) < 0.05
    assert np.mean([s[REST] for s in shares]) > 0.85


def test_the_seed_has_a_share_of_its_own():
    assert {s.name: s.share for s in variance_shares(_rows(seed_sd=5.0), "value")}["seed"] > 0.5


def test_a_prompt_that_only_one_llm_has_is_no_trouble():
    rows = _rows().query("llm == 'l0' or prompt == 'p0'")
    assert {s.name for s in variance_shares(rows, "value")} == {"llm", "prompt", "seed", REST}


def test_a_factor_that_follows_from_another_is_not_counted_twice():
    rows = _rows().assign(writer=lambda r: r["llm"].map({"l0": "small", "l1": "small", "l2": "large"}), copy=lambda r: r["llm"] + "x")
    found = {s.name: s.share for s in variance_shares(rows, "value")}
    assert set(found) == {"llm", "prompt", "seed", REST}
    assert sum(found.values()) == pytest.approx(1)


def test_two_factors_that_work_only_together_interact():
    found = interactions(_rows(noise=0.5, together=6.0), "value", leave_out=("seed",))
    assert [s.name for s in found] == ["llm \u00d7 prompt"]
    assert found[0].share > 0.2
    assert found[0].p < 0.001


def test_factors_that_add_up_do_not_interact():
    (found,) = interactions(_rows(), "value", leave_out=("seed",))
    assert found.share < 0.05
    assert found.p > 0.05


@pytest.mark.parametrize("rows", [_rows().head(1), _rows().assign(value=1.0), _rows()[["seed", "value"]].head(2)])
def test_too_little_says_nothing(rows):
    assert variance_shares(rows, "value") == ()
    assert interactions(rows, "value") == ()
