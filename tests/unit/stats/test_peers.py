"""What peers got wrong (METHOD.md, section 6), each as a test case of ours."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from llmkt_ray.stats.claims import claim
from llmkt_ray.stats.contrast import contrast
from llmkt_ray.stats.corrections import benjamini_hochberg, holm
from llmkt_ray.stats.importance import importance
from llmkt_ray.stats.selection import largest_gain, recommended_default
from llmkt_ray.study import SearchConfig
from llmkt_ray.sweep.objective import directions


def test_recboles_ray_tool_selects_on_test_and_we_do_not():
    """Configuration a is best on validation, b on test: whatever is chosen here is a."""
    values = {"a": (0.10, 0.01), "b": (0.05, 0.20)}
    rows = [{"config": c, "seed": s, "valid": v, "test": t} for c, (v, t) in values.items() for s in range(4)]
    assert largest_gain(pd.DataFrame(rows)).config == "a"
    contexts = [{"dataset": d, "model": "m", "config": c, "valid": v, "test": t} for c, (v, t) in values.items() for d in "xyz"]
    assert recommended_default(pd.DataFrame(contexts)).config == "a"


def test_recboles_significance_script_tests_the_wrong_tail_and_we_test_both():
    """An arm that loses must come out as clearly as one that wins, and never as a gain."""
    rng = np.random.default_rng(1)
    control = rng.gamma(2, 0.1, (4, 300))
    worse = control * 0.9 + rng.normal(0, 0.001, control.shape)
    up, down = contrast(control, worse), contrast(worse, control)
    assert up.difference.p == pytest.approx(down.difference.p)
    assert (up.difference.estimate, up.difference.low) == pytest.approx((-down.difference.estimate, -down.difference.high))
    assert claim(dict.fromkeys(("alpha0", "shuffled", "template"), down), [], 0.02).outcome == "hurts"
    theirs = stats.ttest_rel(worse.mean(axis=0), control.mean(axis=0), alternative="greater").pvalue
    assert theirs > 0.99  # the one-sided test of the wrong tail calls the clearest loss nothing at all


P = [0.011, 0.02, 0.013, 0.2, 0.001]


@pytest.mark.parametrize(("mine", "name"), [(holm, "holm"), (benjamini_hochberg, "fdr_bh")])
def test_warprecs_corrections_lack_the_step_rule_and_ours_have_it(mine, name):
    """Adjusted p-values must keep the order of the raw ones: each is at least (Holm), at most (BH) its neighbour's."""
    adjusted = mine(P)
    assert adjusted == pytest.approx(multipletests(P, method=name)[1])
    assert (np.diff(adjusted[np.argsort(P)]) >= 0).all()
    order, n = np.argsort(np.argsort(P)), len(P)
    without = np.asarray(P) * (n - order if name == "holm" else n / (order + 1))
    assert adjusted != pytest.approx(np.minimum(without, 1))


def test_hopwises_pruning_has_the_sign_flipped_and_higher_is_better_here():
    """The objective of a search is maximised, and what is important is what makes the metric high."""
    search = SearchConfig(kind="optuna")
    assert directions(search) == ["maximize"]
    rng = np.random.default_rng(2)
    # Above .8 `high` matters, below nothing does but `low`: PED-ANOVA looks at what sets the best apart.
    high, low = rng.random(300), rng.random(300)
    value = np.where(high > 0.8, 1 + high, np.where(low > 0.8, -1 - low, rng.normal(0, 0.01, 300)))
    shares = importance(pd.DataFrame({"high": high, "low": low, "seed": np.arange(300) % 3, "value": value}), "value", "ped_anova")
    assert shares["high"] > shares["low"]
