"""Are the intervals what they say? False-positive rate and coverage by simulation, for each estimator and several truths.

    python -m benchmarks.statistics.coverage [--studies 2000] [--users 300]

Every study is a table (seeds, users) of paired differences: a seed effect that all users share, a user effect that all seeds
share, and noise. `missed` is how often the 95 % interval misses the true mean; 5 % is what it says. `false positives` is how often
p < .05 where the truth is 0. `width` is relative to the narrowest honest interval (variance known). `naive` treats every
(seed, user) pair as independent: what the interval would be without this module's care.

`--splits` prints the same for several splits, whose differences share what a seed and a user do in all of them: `t over splits` is what
the interval would be if each split were an independent observation.

`--decisions` prints the second table instead: how often each decision of the report is wrong, on values like NDCG (skewed, a third of
the users at 0), where the truth is at the edge of the decision.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from llmkt_ray.stats.claims import CLAIM_CONTROLS, claim
from llmkt_ray.stats.contrast import Contrast, contrast, over_splits
from llmkt_ray.stats.corrections import benjamini_hochberg, holm
from llmkt_ray.stats.interval import bootstrap_interval, interval, mixed_interval, users_interval

Decide = Callable[[np.random.Generator, int, int], float]
"""From a generator, a number of seeds and one of users to whether a study decides wrongly."""
TRUTHS = {
    "seeds matter most": (1.0, 3.0, 5.0),
    "seeds and users alike": (0.3, 5.0, 5.0),
    "users matter most": (0.05, 8.0, 3.0),
    "noise only": (0.0, 0.0, 5.0),
}
"""Name to standard deviations of seeds, users and rest."""
SPLIT_TRUTHS = {
    "seeds that all splits share": (0.02, 0.0, 0.0, 0.1),
    "users that all splits share": (0.0, 0.005, 0.0, 0.4),
    "splits": (0.0, 0.02, 0.0, 0.1),
    "single trials": (0.0, 0.0, 0.02, 0.1),
    "all alike": (0.01, 0.01, 0.01, 0.15),
}
"""Name to standard deviations of seeds, splits, single trials (each seed on each split) and users; the rest .1 in all."""


def simulate(rng: np.random.Generator, n_seeds: int, n_users: int, sds: tuple[float, float, float]) -> np.ndarray:
    seed, user, rest = sds
    return rng.normal(0, seed, (n_seeds, 1)) + rng.normal(0, user, (1, n_users)) + rng.normal(0, rest, (n_seeds, n_users))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--decisions", action="store_true")
    parser.add_argument("--splits", action="store_true")
    given = parser.parse_args()
    if given.splits:
        splits(given.studies, given.users)
        return
    if given.decisions:
        decisions(given.studies, given.users)
        return
    print(f"{given.studies} studies a line, {given.users} users; simulation error about {math.sqrt(0.05 * 0.95 / given.studies):.1%}\n")
    print("| truth | seeds | estimator | missed | false positives | width | naive missed |")
    print("|---|---|---|---|---|---|---|")
    started = time.perf_counter()
    for name, sds in TRUTHS.items():
        for n_seeds in (1, 2, 3, 5, 9, 10, 20):
            for method in {1: ["chosen"], 2: ["chosen"], 10: ["chosen", "mixed"], 20: ["chosen", "mixed"]}.get(n_seeds, ["chosen"]):
                line(name, sds, n_seeds, method, given.studies, given.users)
    print(f"\n{time.perf_counter() - started:.0f} s")


def line(name: str, sds: tuple[float, float, float], n_seeds: int, method: str, studies: int, users: int) -> None:
    rng = np.random.default_rng([n_seeds, len(name)])
    compute = {"chosen": interval, "mixed": mixed_interval, "bootstrap": bootstrap_interval, "users": users_interval}[method]
    missed = positives = naive = 0
    width = 0.0
    label = ""
    for _ in range(studies):
        table = simulate(rng, n_seeds, users, sds)
        found = compute(table)
        label = found.method
        missed += not found.low <= 0 <= found.high
        positives += found.p < 0.05
        width += found.high - found.low
        naive += stats.ttest_1samp(table.ravel(), 0).pvalue < 0.05
    seed, user, rest = sds
    known = 2 * stats.norm.ppf(0.975) * math.sqrt(seed**2 / n_seeds + user**2 / users + rest**2 / (n_seeds * users))
    said = label + (" (conditional)" if label == "users" else "")
    print(
        f"| {name} | {n_seeds} | {said} | {missed / studies:.1%} | {positives / studies:.1%} | {width / studies / known:.2f} "
        f"| {naive / studies:.1%} |",
        flush=True,
    )


def splits(studies: int, n_users: int) -> None:
    """Prints how often the interval over several splits misses, and how often a t interval over the splits' estimates would."""
    print(f"{studies} studies a line, {n_users} users\n")
    print("| what varies | splits | seeds | missed | false positives | width | t over splits missed |")
    print("|---|---|---|---|---|---|---|")
    for name, sds in SPLIT_TRUTHS.items():
        for n_splits, n_seeds in ((2, 3), (3, 2), (3, 3), (5, 3), (3, 5), (5, 5)):
            splits_line(name, sds, n_splits, n_seeds, studies, n_users)


def splits_line(name: str, sds: tuple[float, float, float, float], n_splits: int, n_seeds: int, studies: int, n_users: int) -> None:
    rng = np.random.default_rng([n_splits, n_seeds, len(name)])
    of_seed, of_split, of_trial, of_user = sds
    of_rest = 0.1
    missed = positives = alone = 0
    width = 0.0
    for _ in range(studies):
        shared = rng.normal(0, of_seed, (n_seeds, 1)) + rng.normal(0, of_user, (1, n_users))
        tables = [
            1 + shared + rng.normal(0, of_split) + rng.normal(0, of_trial, (n_seeds, 1)) + rng.normal(0, of_rest, (n_seeds, n_users))
            for _ in range(n_splits)
        ]
        found = over_splits([contrast(table, np.ones_like(table)) for table in tables]).difference
        missed += not found.low <= 0 <= found.high
        positives += found.p < 0.05
        width += found.high - found.low
        alone += stats.ttest_1samp([table.mean() for table in tables], 1).pvalue < 0.05
    rest = of_trial**2 / (n_splits * n_seeds) + of_rest**2 / (n_splits * n_seeds * n_users)
    known = 2 * stats.norm.ppf(0.975) * math.sqrt(of_seed**2 / n_seeds + of_split**2 / n_splits + of_user**2 / n_users + rest)
    print(
        f"| {name} | {n_splits} | {n_seeds} | {missed / studies:.1%} | {positives / studies:.1%} | {width / studies / known:.2f} "
        f"| {alone / studies:.1%} |",
        flush=True,
    )


def ndcg(rng: np.random.Generator, n_seeds: int, users: np.ndarray, effect: float) -> np.ndarray:
    """Returns a table of values like NDCG: a level a user, 1.5 % noise of the seed, 5 points of noise; the mean is `effect` above."""
    seeds = rng.normal(0, 0.015, (n_seeds, 1))
    return users * (1 + effect) * (1 + seeds) + rng.normal(0, 0.05, (n_seeds, len(users)))


def decisions(studies: int, n_users: int) -> None:
    """Prints how often each decision is wrong at the edge where it may be wrong most often."""
    print(f"{studies} studies a line, {n_users} users, seeds' standard deviation 1.5 %\n")
    print("| decision | wrong where | may be wrong | 3 seeds | 5 seeds | 10 seeds |")
    print("|---|---|---|---|---|---|")
    lines: list[tuple[str, str, str, Decide]] = [
        ("interval of the relative effect", "the gain is 5 %", "5 %", _misses),
        ("difference, p < .05", "there is none", "5 %", lambda rng, s, u: _p(rng, s, u, 0.0) < 0.05),
        (
            "no effect (two one-sided tests)",
            "the gain is the smallest effect, 2 %",
            "5 %",
            lambda rng, s, u: _says(rng, s, u, (0.02,) * 3, "no effect"),
        ),
        ("works", "one of three controls is as good", "2.5 %", lambda rng, s, u: _says(rng, s, u, (0.1, 0.1, 0.0), "works", "worth it")),
        ("worth it", "the gain over one control is 2 %", "2.5 %", lambda rng, s, u: _says(rng, s, u, (0.1, 0.1, 0.02), "worth it")),
        ("any of 12 planned contrasts (Holm)", "there is none", "5 %", _holm),
        ("share of false discoveries, 40 cells (BH)", "30 of them have no gain", "5 %", _false_discoveries),
    ]
    for name, where, may, decide in lines:
        rates = []
        for n_seeds in (3, 5, 10):
            rng = np.random.default_rng([n_seeds, len(name)])
            rates.append(float(np.mean([decide(rng, n_seeds, n_users) for _ in range(studies if "cells" not in name else studies // 5)])))
        print(f"| {name} | {where} | {may} | " + " | ".join(f"{rate:.1%}" for rate in rates) + " |", flush=True)


def _contrasts(rng: np.random.Generator, n_seeds: int, n_users: int, gains: Sequence[float]) -> list[Contrast]:
    """Returns a contrast for each gain: of one treated arm with a control that it is so much above."""
    users = rng.gamma(1.0, 0.3, n_users) * (rng.random(n_users) > 0.33)
    treated = ndcg(rng, n_seeds, users, 0.0)
    return [contrast(treated, ndcg(rng, n_seeds, users, 1 / (1 + gain) - 1)) for gain in gains]


def _p(rng: np.random.Generator, n_seeds: int, n_users: int, gain: float) -> float:
    return _contrasts(rng, n_seeds, n_users, [gain])[0].difference.p


def _misses(rng: np.random.Generator, n_seeds: int, n_users: int) -> bool:
    relative = _contrasts(rng, n_seeds, n_users, [0.05])[0].relative
    assert relative is not None
    return not relative.low <= 0.05 <= relative.high


def _says(rng: np.random.Generator, n_seeds: int, n_users: int, gains: tuple[float, ...], *outcomes: str) -> bool:
    found = zip(CLAIM_CONTROLS, _contrasts(rng, n_seeds, n_users, gains), strict=True)
    return claim(dict(found), [], 0.02).outcome in outcomes


def _holm(rng: np.random.Generator, n_seeds: int, n_users: int) -> bool:
    p = [c.difference.p for _ in range(4) for c in _contrasts(rng, n_seeds, n_users, [0.0, 0.0, 0.0])]
    return bool(holm(p).min() < 0.05)


def _false_discoveries(rng: np.random.Generator, n_seeds: int, n_users: int) -> float:
    truth = [0.0] * 30 + [0.06] * 10
    found = benjamini_hochberg([_p(rng, n_seeds, n_users, gain) for gain in truth]) < 0.05
    return float(found[:30].sum() / max(found.sum(), 1))


if __name__ == "__main__":
    main()
