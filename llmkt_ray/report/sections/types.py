"""N1: what profiles are like for different types of user: activity, popularity affinity, genre entropy and recency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmkt_ray.data.history import histories
from llmkt_ray.data.user_types import THIRDS, thirds, user_types
from llmkt_ray.profiles.text_measures import TextMeasure, text_measures
from llmkt_ray.report.context import Context, Split
from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.sections.base import MOST_PANELS, Figure, Section, Table, drawn_of
from llmkt_ray.report.text import p_value, percent_interval, plain
from llmkt_ray.stats.corrections import benjamini_hochberg
from llmkt_ray.stats.interval import Interval, interval

FEWEST = 10
"""Users of a group below which nothing is said about it."""


@dataclass(frozen=True)
class Group:
    """One measure of the profiles of one third of the users.

    Attributes:
        dataset, llm: whose profiles.
        measure, meaning: what is measured.
        kind, third: which users.
        mean: of the measure in this third, in its own unit.
        relative: mean of the third relative to that of all users, minus 1, with its interval over users.
    """

    dataset: str
    llm: str
    measure: str
    meaning: str
    kind: str
    third: str
    mean: float
    relative: Interval


def profile_types_section(context: Context, findings: Sequence[Finding]) -> Section | None:
    """Returns measures of the profiles by type of user; None without the texts."""
    groups: list[Group] = []
    seen: set[tuple[str, str]] = set()
    for finding in findings:
        cell = finding.cell
        at = (str(cell.factors["dataset"]), str(cell.factors["llm"]))
        treated = next(iter(cell.treated.values()), None)
        split = context.split_of(treated) if treated is not None and at not in seen else None
        texts = context.texts(cell, split.data.key) if split is not None else {}
        if split is not None and texts:
            seen.add(at)
            groups += _groups(*at, split, texts)
    if not groups:
        return None
    reach = charts.reach_of([g.relative for g in groups], 0.1, 1.6)
    panels: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        panels.setdefault((group.dataset, group.llm, group.measure), []).append(group)
    figures = []
    for (dataset, llm, measure), mine in list(panels.items())[: 2 * MOST_PANELS]:
        bars = [charts.Bar(charts.short(f"{g.kind} {g.third}", charts.MOST_LETTERS), "treated", g.relative, _tip(g)) for g in mine]
        title = f"{llm}, {dataset}: {measure} of profiles by type of user"
        canvas = charts.intervals(title, "% above or below all users", bars, reach, None, as_percent=True)
        figures.append(Figure(f"types-{dataset}-{llm}-{measure}", measure, f"{llm}, {dataset}", canvas))
    rows = tuple(
        (g.dataset, g.llm, g.measure, g.kind, g.third, plain(g.mean, 3), percent_interval(g.relative), p_value(float(p)),
         f"{g.relative.n_users:,}")
        for g, p in zip(groups, benjamini_hochberg([g.relative.p for g in groups]), strict=True)
    )  # fmt: skip
    words = "; ".join(f"{name}: {meaning}" for name, meaning in {g.measure: g.meaning for g in groups}.items())
    users = sorted({g.relative.n_users for g in groups})
    return Section(
        key="profile-types",
        title="What profiles are like for which users",
        short="Profiles by user type",
        lead=(
            "Quality and diversity of the profiles in each third of the users. "
            + differs_most(groups)
        ),
        caption=(
            "Mean of the measure in a third of the users, in % above or below the mean of all users. For genre precision, genre recall and "
            "distinctiveness more is better; length has no better direction. Marker: mean. Line: 95 % interval, t over users. "
            f"n = {users[0]:,} to {users[-1]:,} users a group, one split. Thirds are of train rows only. {words}."
            + drawn_of(2 * MOST_PANELS, len(panels), "panels")
        ),
        figures=tuple(figures),
        tables=(
            Table(
                "Every type", ("dataset", "profiles", "measure", "by", "third", "mean",
                 "against all users [95 %]", "p (Benjamini-Hochberg)", "users"),
                (False, False, False, False, False, True, True, True, True), rows,
            ),
        ),
    )  # fmt: skip


def _groups(dataset: str, llm: str, split: Split, texts: Mapping[str, str]) -> list[Group]:
    of_users: list[str | None] = [texts.get(str(token)) for token in split.data.user_tokens]
    users = np.arange(len(of_users))
    made = []
    for measure in text_measures(of_users, histories(split.data), split.kinds[1]):
        mean = float(np.nanmean(measure.values)) if np.isfinite(measure.values).any() else 0.0
        if mean <= 0:
            continue
        for kind in user_types(split.data):
            third = thirds(kind.values, users)
            made += [
                group for at, name in enumerate(THIRDS) if (group := _group(measure, mean, third == at, (dataset, llm, kind.name, name)))
            ]
    return made


def _group(measure: TextMeasure, mean: float, mask: np.ndarray, names: tuple[str, str, str, str]) -> Group | None:
    mine = measure.values[mask & np.isfinite(measure.values)]
    if len(mine) < FEWEST:
        return None
    dataset, llm, kind, third = names
    return Group(dataset, llm, measure.name, measure.meaning, kind, third, float(mine.mean()), interval((mine / mean - 1)[None, :]))


def differs_most(groups: Sequence[Group]) -> str:
    """Returns a sentence that names the type of user whose profiles differ most, where p corrected for all groups says so."""
    adjusted = benjamini_hochberg([g.relative.p for g in groups])
    clear = [g for g, p in zip(groups, adjusted, strict=True) if p < 0.05]
    if not clear:
        return "Inconclusive: in no third do they differ from those of all users."
    most = max(clear, key=lambda g: abs(g.relative.estimate))
    where = f"{most.measure} {percent_interval(most.relative)} ({most.llm}, {most.dataset})"
    return f"They differ most for users of {most.third} {most.kind}: {where}."


def _tip(group: Group) -> str:
    return (
        f"{group.kind}, {group.third} third: {group.measure} {plain(group.mean, 3)}, {percent_interval(group.relative)} against all users"
    )
