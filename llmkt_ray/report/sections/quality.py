"""Profile quality against per-user gain: whether users whose profiles say more gain more."""

from collections.abc import Mapping, Sequence

import numpy as np

from llmkt_ray.data.history import histories
from llmkt_ray.data.user_types import thirds
from llmkt_ray.embeddings.limits import cut_sentences
from llmkt_ray.profiles.text_measures import TextMeasure, text_measures
from llmkt_ray.report.cells import claimed_at, paired_tables
from llmkt_ray.report.context import Context, Split
from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.sections.base import Figure, Section, Table, chosen, cut
from llmkt_ray.report.text import p_value, signed, value_interval
from llmkt_ray.stats.association import spearman
from llmkt_ray.stats.corrections import benjamini_hochberg
from llmkt_ray.stats.interval import Interval


def quality_section(context: Context, findings: Sequence[Finding]) -> Section | None:
    """Returns whether users with better profiles gain more; None without texts."""
    figures, entries = [], []
    drawn: list[tuple[Finding, str, list[tuple[str, Interval]]]] = []
    for finding in chosen(findings):
        cell = finding.cell
        control = "shuffled" if "shuffled" in cell.controls else "alpha0"
        treated, other = cell.treated.get(cell.claim_alpha), cell.controls.get(control)
        if treated is None or other is None:
            continue
        tables = paired_tables(context.results, treated, other, context.results.metric)
        if not tables:
            continue
        repetition, (_, evaluated, one, rest) = next(iter(tables.items()))
        split = context.split_of(treated, repetition)
        texts = context.texts(cell, split.data.key) if split is not None else {}
        if split is None or not texts:
            continue
        gain = context.results.sign() * (one - rest).mean(axis=0, dtype=np.float64)  # positive: better
        rows = []
        for measure in _measures(split, texts):
            mine = measure.values[evaluated]
            rho = spearman(mine, gain)
            if rho is None:
                continue
            rows.append((measure.name, rho))
            third = thirds(measure.values, evaluated)
            ends = [signed(float(np.nanmean(gain[third == at]))) if (third == at).any() else "n/a" for at in (0, 2)]
            entries.append((finding, measure.name, measure.meaning, rho, control, ends))
        if rows:
            drawn.append((finding, control, rows))
    if not drawn:
        return None
    reach = charts.reach_of([rho for _, _, rows in drawn for _, rho in rows], 0.1, 2.5)
    for finding, control, rows in drawn:
        bars = [charts.Bar(name, "treated", rho, f"{name} and gain over {control}: rho {value_interval(rho, 2)}") for name, rho in rows]
        title = f"{finding.cell.label}: profile quality and gain over {control}"
        canvas = charts.intervals(title, "Spearman's rho; right: more of it, more gain", bars, reach, None, as_percent=False, digits=2)
        figures.append(Figure(f"quality-{finding.cell.number}", finding.cell.title, finding.cell.detail, canvas, finding.cell.trials))
    at = claimed_at(context.results, (f.cell for f, *_ in drawn))
    adjusted = benjamini_hochberg([rho.p for *_, rho, _, _ in entries])
    rows_of_table = tuple(
        (f.cell.label, name, meaning, control, value_interval(rho, 3), p_value(float(p)), *ends, f"{rho.n_users:,}")
        for (f, name, meaning, rho, control, ends), p in zip(entries, adjusted, strict=True)
    )
    columns = (
        "cell", "measure of the profile", "what it is", "gain over", "Spearman's rho [95 %]", "p (Benjamini-Hochberg)",
        "gain, lowest third", "gain, highest third", "users",
    )  # fmt: skip
    users = sorted({rho.n_users for *_, rho, _, _ in entries})
    return Section(
        key="quality",
        title="Do better profiles gain more?",
        short="Profile quality",
        lead=(
            "Each user's gain from their own profile beside measures of that profile's text. If knowledge is what helps, users whose "
            "profiles say more of their history should gain more; no relation at all speaks against it."
            + "".join(f" {sentence}." for sentence in cut_sentences(context.results.card.get("embeddings", [])))
        ),
        caption=(
            "Spearman's rank correlation, from \u22121 to 1, of a measure of the profile with the user's "
            f"{context.results.gain.replace('Gain', 'gain')} (treated at {at} over shuffled, or alpha0 where there is no "
            "shuffled; mean over seeds). Right of 0: the more, the larger (better) the gain. Marker: rho. Line: 95 % interval over users, "
            "conditional on these seeds and "
            f"one split. n = {users[0]:,}{f' to {users[-1]:,}' if users[-1] != users[0] else ''} users. Only texts and train rows are "
            f"read.{cut(len(findings))}"
        ),
        figures=tuple(figures),
        tables=(Table("Every measure", columns, (False, False, False, False, True, True, True, True, True), rows_of_table),),
    )


def _measures(split: Split, texts: Mapping[str, str]) -> list[TextMeasure]:
    return text_measures([texts.get(str(token)) for token in split.data.user_tokens], histories(split.data), split.kinds[1])
