"""Q4: how much of the result hangs on who writes and encodes the profiles, and factors that work only together."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from llmkt_ray.report.figures import charts
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.frames import factor_rows
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import Figure, Section, Table, drawn_of
from llmkt_ray.report.text import count, p_value
from llmkt_ray.stats.importance import SEED
from llmkt_ray.stats.variance import REST, Share, interactions, variance_shares

SOURCES = ("LLM", "prompt version", "generation seed", "encoder")
FLOOR = "Dotted line: the training seed, the noise floor."
MOST_PAIRS = 12
NO_FLOOR = "All trials have one training seed, so no noise floor is drawn."


def sources_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns the shares of the variance that LLM, prompt, generation seed and encoder explain; None where none of them varies."""
    figures, rows, floors = [], [], 0
    for (dataset, model), frame in _by_context(factor_rows(results, [f for f in findings if f.cell.treated]), results):
        varied = [name for name in SOURCES if name in frame and frame[name].nunique() > 1]
        shares = variance_shares(frame, "value") if varied else ()
        if not shares:
            continue
        bars = [
            (share.name, "reference" if share.name in (SEED, REST) else "treated", share.share, f"{share.name}: {share.share:.1%}")
            for share in shares
        ]
        seed = next((share.share for share in shares if share.name == SEED), None)
        canvas = charts.dots(f"{model} on {dataset}: shares of the variance", bars, (0.0, 1.0), seed, as_percent=True)
        figures.append(Figure(f"sources-{model}-{dataset}", f"{model} on {dataset}", "share of the variance", canvas))
        floors += seed is not None
        rows += [_row(f"{model} on {dataset}", share, len(frame)) for share in shares]
    if not figures:
        return None
    return Section(
        key="sources",
        title="What the choice of LLM, prompt and encoder is worth",
        short="Sources",
        lead=(
            "Q4: of all the variation in the treated trials, how much is the LLM's, the prompt's, the generation's, the encoder's, and how "
            "much is what repeating the same trial does (seed, rest)."
        ),
        caption=(
            f"Share of the variance of validation {results.metric} over treated trials that each factor explains, from 0 to 1 (omega "
            f"squared, type II sums of squares); neither direction is better. {FLOOR if floors else NO_FLOOR} Rest: what "
            f"no factor explains alone. n = {count(sum(int(row[4]) for row in {r[0]: r for r in rows}.values()), 'trial')}. No interval: "
            "the p of each F test is in the table."
        ),
        figures=tuple(figures),
        tables=(Table("Shares", ("where", "factor", "share", "p (F test)", "trials"), (False, False, True, True, True), tuple(rows)),),
    )


def interactions_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    """Returns what pairs of factors explain only together; None where fewer than two factors vary."""
    frame = factor_rows(results, findings)
    found = interactions(frame, "value", leave_out=(SEED, "split")) if len(frame) else ()
    if not found:
        return None
    shares = variance_shares(frame, "value")
    seed = next((share.share for share in shares if share.name == SEED), None)
    named = [(_words(share.name), share) for share in found[:MOST_PAIRS]]
    bars = [(charts.short(name, charts.MOST_LETTERS), "treated", s.share, f"{name}: {s.share:.1%}, p {p_value(s.p)}") for name, s in named]
    reach = (0.0, max(0.02, *(share.share for share in found), seed or 0.0) * 1.06)
    canvas = charts.dots("Interactions: shares of the variance", bars, reach, seed, as_percent=True)
    strong = [name for name, share in named if share.p < 0.05 and share.share > (seed or 0.0)]
    if strong:
        said = f"The best level of one depends on the other: {strong[0]}" + (f" and {len(strong) - 1} more." if len(strong) > 1 else ".")
    else:
        than = "the seed does" if seed is not None else "chance does; all trials have one seed, so there is no noise floor"
        said = f"Inconclusive: no pair of factors explains more together than {than}; read each factor on its own."
    rows = tuple((_words(share.name), f"{share.share:.1%}", p_value(share.p), str(share.levels)) for share in found)
    return Section(
        key="interactions",
        title="Factors that work only together",
        short="Interactions",
        lead=said,
        caption=(
            f"Share of the variance of validation {results.metric} (relative to its dataset and model) that two factors explain together "
            f"beyond each of them, from 0 to 1 (omega squared); neither direction is better. {NO_FLOOR if seed is None else FLOOR} "
            f"n = {count(len(frame), 'treated trial')}; trials are the units here, the seed is adjusted for. p by Benjamini-Hochberg over "
            "the pairs; pairs of which not every combination ran are left out. No interval." + drawn_of(MOST_PAIRS, len(found), "pairs")
        ),
        figures=(Figure("interactions", "Interactions", "share of the variance", canvas),),
        tables=(Table("Every pair", ("pair", "share", "p (Benjamini-Hochberg)", "combinations"), (False, True, True, True), rows),),
    )


def _by_context(frame: pd.DataFrame, results: Results) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    if not len(frame):
        return []
    parts = source_parts(results.study)
    if "llm" in frame:
        for name in SOURCES[:3]:
            frame[name] = [parts.get(label, {}).get(name, label if name == "LLM" else "-") for label in frame["llm"]]
        frame = frame.drop(columns="llm")
    return [
        ((str(dataset), str(model)), part.drop(columns=["dataset", "model"]))
        for (dataset, model), part in frame.groupby(["dataset", "model"])
    ]


def source_parts(study: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns label of profiles to its LLM, prompt version and generation seed, as the study file names them."""
    found = {}
    for profile in study.get("profiles", []):
        model = profile.get("model")
        label = str(profile.get("name") or (f"{profile.get('llm')}:{model}" if model else profile.get("llm")))
        # Profiles from a file have no model in the study: their label is all that tells them apart.
        writer = str(model or (label if profile.get("llm") == "file" else profile.get("llm")))
        prompt, generation = str(profile.get("prompt") or "built-in"), str(profile.get("generation", 0))
        found[label] = {"LLM": writer, "prompt version": prompt, "generation seed": generation}
    return found


def _row(where: str, share: Share, trials: int) -> tuple[str, ...]:
    return where, share.name.replace("_", " "), f"{share.share:.1%}", p_value(share.p), str(trials)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("reduction", "reducer").replace("llm", "profiles")
