"""Who gains: by type of user, and by demographic group where the dataset has any."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmkt_ray.data.user_types import OTHERS, THIRDS, demographics, thirds, user_types
from llmkt_ray.report.cells import claimed_at, paired_tables
from llmkt_ray.report.context import Context, Split
from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.sections.base import Figure, Section, Table, chosen, cut, sample
from llmkt_ray.report.text import count, p_value, percent_interval, plain, value_interval
from llmkt_ray.stats.contrast import Contrast, contrast, over_splits
from llmkt_ray.stats.corrections import benjamini_hochberg

Divide = Callable[[Split, np.ndarray], Mapping[tuple[str, str], np.ndarray]]
"""From a split and its evaluated users `(n,)` to (kind, group) to who of them belongs to the group, bool `(n,)`."""
MOST_DRAWN = 4
"""Cells that are drawn, those with the largest effects: a panel has many rows."""
FEWEST_USERS = 10
"""Users of a group below which nothing is said about it."""


@dataclass(frozen=True)
class Group:
    """Treated over alpha0 within one group of users."""

    finding: Finding
    kind: str
    name: str
    found: Contrast


def user_types_section(context: Context, findings: Sequence[Finding]) -> Section | None:
    """Returns the gain by type of user: thirds of activity, popularity affinity, genre entropy and recency."""
    meaning: dict[str, str] = {}

    def divide(split: Split, users: np.ndarray) -> Mapping[tuple[str, str], np.ndarray]:
        masks: dict[tuple[str, str], np.ndarray] = {}
        for kind in user_types(split.data):
            meaning[kind.name] = kind.meaning
            third = thirds(kind.values, users)
            masks |= {(kind.name, name): third == at for at, name in enumerate(THIRDS)}
        return masks

    groups = _groups(context, findings, divide)
    words = "; ".join(f"{name}: {text}" for name, text in meaning.items())
    return _section(
        context, findings, groups, "types", "Which users gain", "User types",
        f"Thirds of the evaluated users, from train rows only ({words}).",
        "The gain of treated over alpha0 in each third of the users. Look for a type of user who loses while the mean gains.",
    )  # fmt: skip


def demographics_section(context: Context, findings: Sequence[Finding]) -> Section | None:
    """Returns the gain by demographic group; None where the dataset has no such column."""

    def divide(split: Split, users: np.ndarray) -> Mapping[tuple[str, str], np.ndarray]:
        return {
            (column, name): groups[users] == name
            for column, groups in demographics(split.data).items() for name in sorted(set(groups.tolist()) - {""}, key=_natural)
        }  # fmt: skip

    groups = _groups(context, findings, divide)
    return _section(
        context, findings, groups, "demographics", "Demographic groups", "Demographics",
        f"Groups as the dataset names them; those of fewer than {FEWEST_USERS} evaluated users are left out.",
        "Whether the gain is shared by the groups that the dataset knows of. Profiles name them only if the study's prompt does.",
    )  # fmt: skip


def _groups(context: Context, findings: Sequence[Finding], divide: Divide) -> list[Group]:
    made = []
    for finding in chosen(findings):
        cell = finding.cell
        treated, alpha0 = cell.treated.get(cell.claim_alpha), cell.controls.get("alpha0")
        if treated is None or alpha0 is None:
            continue
        found: dict[tuple[str, str], list[Contrast]] = {}
        for repetition, (seeds, users, one, other) in paired_tables(context.results, treated, alpha0, context.results.metric).items():
            split = context.split_of(treated, repetition)
            if split is None:
                continue
            for name, mask in divide(split, users).items():
                mask = mask & np.isfinite(one).all(axis=0) & np.isfinite(other).all(axis=0)
                if mask.sum() >= FEWEST_USERS:
                    less = context.results.sign() < 0
                    part = contrast(one[:, mask], other[:, mask], users=users[mask], seeds=seeds, lower_is_better=less)
                    found.setdefault(name, []).append(part)
        made += [Group(finding, kind, name, over_splits(contrasts)) for (kind, name), contrasts in found.items()]
    return made


def _section(
    context: Context, findings: Sequence[Finding], groups: Sequence[Group], key: str, title: str, short: str, defined: str, lead: str
) -> Section | None:
    if not groups:
        return None
    metric = context.results.metric
    relative = [g.found.relative for g in groups if g.found.relative is not None]
    reach = charts.reach_of(relative, 2 * context.results.smallest_effect, 1.8)
    figures = []
    for finding in chosen(list({g.finding.cell.number: g.finding for g in groups}.values()), MOST_DRAWN):
        mine = [g for g in groups if g.finding.cell.number == finding.cell.number]
        first = {g.kind: g.name for g in reversed(mine)}
        rows = [
            charts.Bar(g.name, "treated", g.found.relative, f"{g.kind} {_tip(g)}", g.kind if g.name == first[g.kind] else "")
            for g in mine if g.found.relative is not None
        ]  # fmt: skip
        if not rows:
            continue
        name = f"gain over alpha0 by group of users, % of alpha0's {metric}"
        canvas = charts.intervals(
            f"{finding.cell.label}: {name}", f"% of alpha0's {metric}; right is better", rows, reach, context.results.smallest_effect,
            as_percent=True,
        )  # fmt: skip
        figures.append(Figure(f"{key}-{finding.cell.number}", finding.cell.title, finding.cell.detail, canvas, finding.cell.trials))
    at = claimed_at(context.results, (g.finding.cell for g in groups))
    adjusted = benjamini_hochberg([g.found.difference.p for g in groups])
    rows_of_table = tuple(
        (
            g.finding.cell.label, g.kind, g.name, f"{g.found.difference.n_users:,}", plain(g.found.mean_arm), plain(g.found.mean_control),
            value_interval(g.found.difference), percent_interval(g.found.relative) if g.found.relative else "n/a", p_value(float(p)),
        )
        for g, p in zip(groups, adjusted, strict=True)
    )  # fmt: skip
    columns = (
        "cell", "by", "group", "users", "treated", "alpha0", f"difference in {metric} [95 %]", "relative [95 %]", "p (Benjamini-Hochberg)",
    )  # fmt: skip
    return Section(
        key=key,
        title=title,
        short=short,
        lead=lead,
        caption=(
            f"{context.results.gain} of treated at {at} over alpha0 within each group, in % of the "
            "group's alpha0; right of 0 is better. Marker: mean. Line: 95 % interval. Grey: smaller than the smallest effect of interest. "
            f"{defined} "
            f"{sample([g.found for g in groups])} Groups that look different need not be: the intervals are of each group's gain, not of "
            f"differences between groups.{cut(len({g.finding.cell.number for g in groups}), MOST_DRAWN)}"
        ),
        figures=tuple(figures),
        tables=(Table("Every group", columns, (False, False, False, True, True, True, True, True, True), rows_of_table),),
    )


def _tip(group: Group) -> str:
    gain = percent_interval(group.found.relative) if group.found.relative is not None else "n/a"
    return f"{group.name}, {count(group.found.difference.n_users, 'user')}: {gain}"


def _natural(name: str) -> tuple[bool, float, str]:
    """Sorts numbers by value, texts after them, and what is left last."""
    head = name.split(" ")[0]
    return name == OTHERS, float(head) if head.replace(".", "", 1).isdigit() else float("inf"), name
