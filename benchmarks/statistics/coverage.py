"""Are the intervals what they say? False-positive rate and coverage by simulation, for each estimator and several truths.

    python -m benchmarks.statistics.coverage [--studies 2000] [--users 300]

Every study is a table (seeds, users) of paired differences: a seed effect that all users share, a user effect that all seeds
share, and noise. `missed` is how often the 95 % interval misses the true mean; 5 % is what it says. `false positives` is how often
p < .05 where the truth is 0. `width` is relative to the narrowest honest interval (variance known). `naive` treats every
(seed, user) pair as independent: what the interval would be without this module's care.
"""

import argparse
import math
import time

import numpy as np
from scipy import stats

from llmkt_ray.stats.interval import bootstrap_interval, interval, mixed_interval, users_interval

TRUTHS = {
    "seeds matter most": (1.0, 3.0, 5.0),
    "seeds and users alike": (0.3, 5.0, 5.0),
    "users matter most": (0.05, 8.0, 3.0),
    "noise only": (0.0, 0.0, 5.0),
}
"""Name to standard deviations of seeds, users and rest."""


def simulate(rng: np.random.Generator, n_seeds: int, n_users: int, sds: tuple[float, float, float]) -> np.ndarray:
    seed, user, rest = sds
    return rng.normal(0, seed, (n_seeds, 1)) + rng.normal(0, user, (1, n_users)) + rng.normal(0, rest, (n_seeds, n_users))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--users", type=int, default=300)
    given = parser.parse_args()
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


if __name__ == "__main__":
    main()
