"""Beyond accuracy: whether the transfer changes what kind of items is recommended, not only how many are hit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmkt_ray.report.cells import Runs, claimed_at, of_both, shared_seeds
from llmkt_ray.report.context import Context, Split
from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.sections.base import Figure, Section, Table, chosen, cut, sample
from llmkt_ray.report.text import percent_interval, plain, value_interval
from llmkt_ray.stats import beyond
from llmkt_ray.stats.contrast import Contrast, contrast, over_splits


@dataclass(frozen=True)
class Measure:
    """One measure: its name, its unit and direction in words, and how many digits it is shown with."""

    name: str
    meaning: str
    digits: int = 3


MEASURES = (
    Measure("catalogue coverage", "share of all items that are in at least one list, 0 to 1; higher: more of the catalogue is shown"),
    Measure("novelty", "mean -log2 of the share of train users who like an item, bits; higher: less known items, not better in itself", 2),
    Measure("list popularity", "mean share of train users who like an item, 0 to 1; lower: less popular items", 4),
    Measure("popularity lift", "how much more popular lists are than what the users liked in train, relative; 0 is as popular"),
    Measure("intra-list diversity", "mean of 1 \u2212 cosine of the kinds (genres) of two items of a list, 0 to 1; higher: more diverse"),
    Measure("long-tail recall", "recall of test positives outside the 20 % most popular items, 0 to 1; higher is better"),
)
DRAWN = ("catalogue coverage", "novelty", "list popularity", "intra-list diversity", "long-tail recall")
"""Measures whose relative change means something; the lift is relative already and may be 0."""


def beyond_section(context: Context, findings: Sequence[Finding]) -> Section | None:
    """Returns coverage, novelty, popularity lift, diversity and long-tail recall of the arms; None without lists or splits."""
    shown = chosen([f for f in findings if f.cell.claim_alpha in f.cell.treated and "alpha0" in f.cell.controls])
    values = _measure(context, shown)
    if not values:
        return None
    figures, rows, differences, every = [], [], [], []
    for finding in shown:
        arms = {"treated": finding.cell.treated[finding.cell.claim_alpha]}
        arms |= finding.cell.controls
        levels = {arm: _levels(context, runs, values) for arm, runs in arms.items()}
        rows += [(finding.cell.label, arm, *(_shown(found, m) for m in MEASURES)) for arm, found in levels.items() if found]
        contrasts = {m.name: c for m in MEASURES if (c := _contrast(context, arms["treated"], arms["alpha0"], values, m.name)) is not None}
        differences += [
            (finding.cell.label, m.name, value_interval(c.difference, m.digits), percent_interval(c.relative) if c.relative else "n/a")
            for m in MEASURES if (c := contrasts.get(m.name)) is not None
        ]  # fmt: skip
        every += [c for name, c in contrasts.items() if name != "catalogue coverage"]
        drawn = {name: c.relative for name in DRAWN if (c := contrasts.get(name)) is not None and c.relative is not None}
        if drawn:
            figures.append((finding, drawn))
    rows += _reference_rows(context, shown, values)
    if not figures:
        return None
    # Recall in the tail is so small that its relative change would squeeze all others to a point.
    reach = charts.reach_of([i for _, drawn in figures for name, i in drawn.items() if name != "long-tail recall"], 0.04, 1.8)
    title = "change of treated over alpha0, % of alpha0"
    panels = [
        Figure(
            f"beyond-{f.cell.number}", f.cell.title, f.cell.detail,
            charts.intervals(
                f"{f.cell.label}: {title}", "% of alpha0; right is more",
                [charts.Bar(_short(n), "treated", i, f"{n}, treated over alpha0: {percent_interval(i)}") for n, i in drawn.items()],
                reach, None, as_percent=True,
            ),
            f.cell.trials,
        )
        for f, drawn in figures
    ]  # fmt: skip
    at = claimed_at(context.results, (f.cell for f in shown))
    k = next(iter(values.values()))["k"].item()
    return Section(
        key="beyond",
        title="Beyond accuracy",
        short="Beyond",
        lead="Whether the transfer changes what is recommended, not only how much of it is hit: the same users, the first "
        f"{k} items of their lists.",
        caption=(
            f"Change of treated at {at} over alpha0, in % of alpha0. Better is right for coverage, "
            "diversity and long-tail recall; for novelty and popularity it depends on what is wanted. Marker: mean. Line: 95 % "
            f"interval, cut at the panel's edge; the number is the mean. {sample(every)} Long-tail recall: users with a test positive "
            "there. Coverage: the items are the units. "
            f"Lists ranked for {context.results.metric}.{cut(len(findings))}"
        ),
        figures=tuple(panels),
        tables=(
            Table("What is measured", ("measure", "what it is"), (False, False), tuple((m.name, m.meaning) for m in MEASURES)),
            Table(
                "Arm by arm", ("cell", "arm", *(m.name for m in MEASURES)), (False, False, *(True,) * len(MEASURES)), tuple(rows)
            ),
            Table(
                "Treated over alpha0", ("cell", "measure", "difference [95 %]", "relative [95 %]"), (False, False, True, True),
                tuple(differences),
            ),
        ),
    )  # fmt: skip


def _measure(context: Context, findings: Sequence[Finding]) -> dict[str, dict[str, np.ndarray]]:
    """Returns for every trial that is needed its measures: one value a user (an item for coverage)."""
    runs = [r for f in findings for r in (f.cell.treated[f.cell.claim_alpha], *f.cell.controls.values())]
    results = context.results
    wanted = {row for r in runs for row in r.rows.values()}
    datasets = {f.cell.factors["dataset"] for f in findings}
    wanted |= {int(row) for row in results.references.index[results.references["dataset"].isin(datasets)]}
    split_of = {str(results.keys[row]): str(results.trials["split_key"].iloc[row]) for row in wanted}
    found = {}
    for key, (users, lists) in context.lists(split_of):
        split = context.split(split_of[key])
        if split is not None and lists.size and int(lists.max()) < split.data.n_items:
            found[key] = _measures_of(split, users, lists)
    return found


def _measures_of(split: Split, users: np.ndarray, lists: np.ndarray) -> dict[str, np.ndarray]:
    test = split.data.test.positives()
    found = {
        "k": np.asarray(lists.shape[1]),
        "users": users,
        "catalogue coverage": beyond.covered(lists, split.data.n_items),
        "novelty": beyond.novelty(lists, split.popularity, split.n_train_users),
        "list popularity": beyond.list_popularity(lists, split.popularity),
        "popularity lift": beyond.popularity_lift(lists, split.popularity, split.liked_popularity[users]),
        "long-tail recall": beyond.tail_recall(lists, users, test.user, test.item, beyond.tail_of(split.popularity)),
    }
    if len(split.kinds[1]) > 1:
        found["intra-list diversity"] = beyond.diversity(lists, split.kinds[0])
    return found


def _levels(context: Context, runs: Runs, values: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    keys = [str(context.results.keys[row]) for row in runs.rows.values()]
    mine = [values[key] for key in keys if key in values]
    names = {name for of in mine for name in of if name not in ("k", "users")}
    return {
        name: float(np.mean([np.nanmean(of[name]) for of in mine if name in of and np.isfinite(of[name]).any()] or [np.nan]))
        for name in names
    }


def _reference_rows(context: Context, findings: Sequence[Finding], values: Mapping[str, Mapping[str, np.ndarray]]) -> list[tuple[str, ...]]:
    references, rows = context.results.references, []
    for dataset in dict.fromkeys(str(f.cell.factors["dataset"]) for f in findings):
        mine = references[references["dataset"] == dataset]
        for model, of in mine.groupby("model"):
            runs = Runs("reference", 0.0, dict(zip(zip([0] * len(of), range(len(of)), strict=True), map(int, of.index), strict=True)))
            found = _levels(context, runs, values)
            if found:
                rows.append((f"{dataset}: reference", str(model), *(_shown(found, m) for m in MEASURES)))
    return rows


def _contrast(context: Context, one: Runs, other: Runs, values: Mapping[str, Mapping[str, np.ndarray]], name: str) -> Contrast | None:
    """Returns the paired contrast of a measure over shared splits and seeds; units without a value in any trial are left out."""
    found, both = [], of_both(context.results, one, other, {key: mine for key, mine in values.items() if name in mine})
    for repetition, seeds in shared_seeds(both).items():
        here = [both[repetition, seed] for seed in seeds]
        a, b = np.stack([x[name] for x, _ in here]), np.stack([y[name] for _, y in here])
        ids = np.arange(a.shape[1]) if name == "catalogue coverage" else here[0][0]["users"]
        kept = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
        if kept.sum() >= 2:
            found.append(contrast(a[:, kept], b[:, kept], users=ids[kept], seeds=seeds))
    return over_splits(found) if found else None


def _shown(found: Mapping[str, float], measure: Measure) -> str:
    return plain(found[measure.name], measure.digits) if measure.name in found else "\u2013"


def _short(name: str) -> str:
    return {"catalogue coverage": "coverage", "list popularity": "popularity", "intra-list diversity": "diversity"}.get(name, name)
