import numpy as np
import pytest

from llmkt_ray.stats.claims import claim
from llmkt_ray.stats.contrast import contrast


def _contrast(gain, sd=0.001, n_seeds=4, seed=0):
    rng = np.random.default_rng([seed, n_seeds])
    control = rng.gamma(2, 0.1, (1, 300)) + rng.normal(0, sd, (n_seeds, 300))
    return contrast(control * (1 + gain) + rng.normal(0, sd, (n_seeds, 300)), control)


def _all(gain, **more):
    return {name: _contrast(gain, seed=at, **more) for at, name in enumerate(("alpha0", "shuffled", "template"))}


@pytest.mark.parametrize(("gain", "outcome"), [(0.05, "worth it"), (0.01, "works"), (-0.05, "hurts"), (0.0, "no effect")])
def test_outcomes_follow_the_bounds(gain, outcome):
    assert claim(_all(gain), [], 0.02).outcome == outcome


def test_one_control_that_is_not_beaten_is_enough():
    found = claim({**_all(0.05), "template": _contrast(0.0)}, [], 0.02)
    assert found.outcome == "inconclusive"
    assert found.reasons == ("treated cannot be told apart from template",)


def test_wide_intervals_are_inconclusive():
    assert claim(_all(0.02, sd=1.0), [], 0.02).outcome == "inconclusive"


def test_blocks_forbid_a_verdict_whatever_the_gain():
    found = claim(_all(0.5), ["no LLM wrote these profiles (template)"], 0.02)
    assert (found.outcome, found.reasons) == ("no verdict", ("no LLM wrote these profiles (template)",))


@pytest.mark.parametrize("missing", ["alpha0", "shuffled", "template"])
def test_a_missing_control_forbids_a_verdict(missing):
    contrasts = _all(0.5)
    del contrasts[missing]
    assert claim(contrasts, [], 0.02).outcome == "no verdict"
    assert missing in claim(contrasts, [], 0.02).reasons[0]


def test_two_seeds_never_conclude():
    found = claim(_all(0.5, n_seeds=2), [], 0.02)
    assert found.outcome == "inconclusive"
    assert "conditional on these seeds" in found.reasons[0]
