import numpy as np
import pandas as pd
import pytest

from llmkt_ray.stats.contrast import contrast
from llmkt_ray.stats.selection import choose, largest_gain, recommended_default, safe_range


def test_the_largest_gain_of_pure_noise_is_gone_on_other_seeds():
    """The winner's curse: of 200 configurations without any effect the best looks good, and is nothing on seeds that did not choose it."""
    rng = np.random.default_rng(1)
    apparent, honest = [], []
    for _ in range(50):
        noise = rng.normal(0, 0.02, (200, 6))
        rows = [
            {"config": f"c{c:03d}", "seed": s, "valid": noise[c, s], "test": noise[c, s] + rng.normal(0, 0.005)}
            for c in range(200)
            for s in range(6)
        ]
        found = largest_gain(pd.DataFrame(rows))
        assert found.searched == 200
        assert set(found.choosing).isdisjoint(found.judging)
        apparent.append(found.apparent)
        honest.append(found.honest)
    assert np.mean(apparent) > 0.02
    assert abs(np.mean(honest)) < 0.005


def test_one_seed_judges_nothing():
    found = largest_gain(pd.DataFrame({"config": ["a", "b"], "seed": [0, 0], "valid": [0.1, 0.2], "test": [0.3, 0.1]}))
    assert (found.config, found.apparent, found.honest) == ("b", 0.1, None)  # chosen on validation, not on test


def test_candidates_are_chosen_on_the_same_seeds_and_splits():
    """A worse one of which only the lucky seed finished would win by its own mean; whoever lacks a trial is left out and named."""
    nan = float("nan")
    values = {
        "good": {(0, 0): 0.2, (0, 1): 0.4},
        "lucky": {(0, 1): 0.35},
        "bad": {(0, 0): 0.1, (0, 1): 0.3},
        "blind": {(0, 0): 9, (0, 1): nan},
    }
    found = choose(values)
    assert (found.best, found.left_out) == ("good", ("lucky", "blind"))
    assert found.means == pytest.approx({"good": 0.3, "bad": 0.2})
    assert choose(values, lower_is_better=True).best == "bad"
    assert choose({"blind": {0: nan}}) is None


def test_of_the_fullest_candidates_those_that_share_their_seeds_with_most_are_compared():
    values = {"alone": {0: 9.0, 2: 9.0}, "one": {0: 0.1, 1: 0.2}, "two": {0: 0.2, 1: 0.3}}
    assert (choose(values).best, choose(values).left_out) == ("two", ("alone",))


def _to_best(losses, best, noise=0.0002):
    rng = np.random.default_rng(2)
    users = rng.gamma(2, 0.1, (1, 400))
    tables = {alpha: users * (1 - loss) + rng.normal(0, noise, (4, 400)) for alpha, loss in losses.items()}
    return {alpha: contrast(table, tables[best]).relative for alpha, table in tables.items() if alpha != best}


def test_the_safe_range_ends_where_a_percent_is_lost():
    to_best = _to_best({0.1: 0.0, 0.3: 0.05, 0.5: 0.003, 0.7: 0.0, 0.9: 0.05}, 0.7)
    assert safe_range(to_best, 0.7) == (0.5, 0.7)  # 0.1 is as good, but not next to it


def test_the_safe_range_does_not_cross_an_alpha_of_which_nothing_is_known():
    to_best = _to_best({0.1: 0.0, 0.5: 0.0, 0.7: 0.0}, 0.5)
    assert safe_range(to_best | {0.3: None}, 0.5) == (0.5, 0.7)


def test_the_best_is_not_compared_with_itself():
    with pytest.raises(ValueError, match="must not be compared with itself"):
        safe_range(_to_best({0.3: 0.0, 0.5: 0.0}, 0.5), 0.3)


def test_what_cannot_be_shown_to_be_safe_is_not_in_the_range():
    assert safe_range(_to_best({0.3: 0.0, 0.5: 0.0, 0.7: 0.0}, 0.5, noise=0.5), 0.5) == (0.5,)


GAINS = {
    ("A", "m"): {"low": 0.05, "high": 0.01},
    ("B", "m"): {"low": 0.04, "high": 0.0},
    ("C", "m"): {"low": -0.02, "high": 0.06, "own": 0.08},
}


def _gains(gains):
    return pd.DataFrame(
        {"dataset": d, "model": m, "config": k, "valid": g, "test": g} for (d, m), configs in gains.items() for k, g in configs.items()
    )


def test_a_default_is_judged_where_it_was_not_chosen():
    found = recommended_default(_gains(GAINS))
    by = {one.what: one for one in found.by_dataset}
    assert (by["C"].chosen, by["C"].own) == ("low", "own")  # A and B prefer low; C's own choice need not be shared
    assert by["C"].regret == pytest.approx(0.10 / 1.08)
    assert by["A"].chosen == "high"  # without A, B and C together prefer high
    assert found.worst.what == "C"
    assert found.by_model == ()  # there is one model only
    assert (found.contexts, found.shared) == (3, 2)


def test_a_default_is_judged_by_leaving_out_a_dataset_and_then_a_model():
    gains = {(d, m): {"low": 0.05 if m == "m" else -0.02, "high": 0.02} for d in "AB" for m in "mn"}
    found = recommended_default(_gains(gains))
    assert found.config == "high"
    assert {(one.what, one.dataset, one.model) for one in found.by_dataset} == {(d, d, m) for d in "AB" for m in "mn"}
    assert {(one.what, one.chosen, one.own) for one in found.by_model} == {("m", "high", "low"), ("n", "low", "high")}
    assert max(one.regret for one in found.by_model) == pytest.approx(0.04 / 1.02)


def test_regret_of_a_loss_is_a_share_of_the_own_choices_loss():
    """Gains of .2 and .1 are losses of .8 and .9 of the control's: an eighth more."""
    gains = {("A", "m"): {"x": 0.2, "y": 0.1}, ("B", "m"): {"x": 0.1, "y": 0.2}}
    found = recommended_default(_gains(gains), -1.0)
    assert [one.regret for one in found.by_dataset] == pytest.approx([0.1 / 0.8] * 2)


def test_no_default_without_two_contexts_or_a_shared_configuration():
    assert recommended_default(_gains({("A", "m"): GAINS["A", "m"]})) is None
    assert recommended_default(_gains({("A", "m"): {"x": 0.1}, ("B", "m"): {"y": 0.1}})) is None
