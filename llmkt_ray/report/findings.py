"""What a study found: for every cell its contrasts, its claim, and what stands against it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from llmkt_ray.report.cells import Cell, Runs, compare, find_cells, shared
from llmkt_ray.report.load import Results
from llmkt_ray.report.text import count, listed
from llmkt_ray.stats.claims import Claim, claim
from llmkt_ray.stats.contrast import Contrast
from llmkt_ray.stats.corrections import benjamini_hochberg, holm
from llmkt_ray.training.bridge.registry import MODELS

MUST_CONVERGE = ("baseline", "alpha0")
"""Arms whose best epoch at the end of training forbids any verdict: any regulariser looks like knowledge beside them."""

MOST_REASONS = 3
"""Reasons against a verdict that an answer names; the verdict holds all."""


@dataclass(frozen=True)
class Step:
    """One part of the attribution: `arm` minus `control`.

    Attributes:
        name: schedule, regularisation, own profile, LLM, and so on.
        meaning: what it is, in words.
        contrast: None where one of the two has not run.
        arm, control: what it is the difference of.
    """

    name: str
    meaning: str
    contrast: Contrast | None
    arm: str
    control: str


@dataclass(frozen=True)
class Finding:
    """What is known of one cell.

    Attributes:
        cell: the cell.
        contrasts: control to contrast of `treated` at the prespecified alpha.
        holm: control to Holm's p over all planned contrasts of the study.
        grid: alpha to contrast of `treated` with alpha0.
        grid_bh: alpha to Benjamini-Hochberg's p over all alphas and cells of the study.
        steps: the attribution.
        steps_holm: part of the attribution to Holm's p over the parts of all cells.
        claim: what can be said.
        levels: arm (or reference model) to mean test value, see `levels_of`.
        trials: arm to the number of trials that its level is the mean of.
        flags: what a reader should know, one sentence each.
    """

    cell: Cell
    contrasts: Mapping[str, Contrast]
    holm: Mapping[str, float]
    grid: Mapping[float, Contrast]
    grid_bh: Mapping[float, float]
    steps: tuple[Step, ...]
    steps_holm: Mapping[str, float]
    claim: Claim
    levels: Mapping[str, float]
    trials: Mapping[str, int]
    flags: tuple[str, ...] = field(default=())


def find(results: Results) -> tuple[Finding, ...]:
    """Returns the findings of every cell."""
    cells = find_cells(results)
    # `leaked` has seen the test rows: it is shown as a level, and takes part in no contrast, correction or verdict (METHOD.md, section 3).
    honest = [[arm for arm in cell.controls if arm != "leaked"] for cell in cells]
    contrasts = [
        {arm: c for arm in arms if (c := compare(results, cell, cell.claim_alpha, arm)) is not None}
        for cell, arms in zip(cells, honest, strict=True)
    ]
    grids = [{a: c for a in cell.treated if (c := compare(results, cell, a, "alpha0")) is not None} for cell in cells]
    planned = _adjusted(contrasts, holm)
    searched = _adjusted(grids, benjamini_hochberg)
    steps = [steps_of(results, cell) for cell in cells]
    parts = _adjusted([{step.name: step.contrast for step in of_cell if step.contrast is not None} for of_cell in steps], holm)
    levels = [levels_of(results, cell, of_cell) for cell, of_cell in zip(cells, contrasts, strict=True)]
    return tuple(
        Finding(
            cell=cell,
            contrasts=contrasts[at],
            holm=planned[at],
            grid=grids[at],
            grid_bh=searched[at],
            steps=steps[at],
            steps_holm=parts[at],
            claim=claim(contrasts[at], blocks_of(results, cell), results.smallest_effect, unfinished_of(results, cell)),
            levels=levels[at],
            trials={arm: len(runs.rows) for arm, runs in levelled(cell, contrasts[at]).items()},
            flags=flags_of(results, cell, levels[at]) + turned_of(results, cell, contrasts[at].get("alpha0")),
        )
        for at, cell in enumerate(cells)
    )


def steps_of(results: Results, cell: Cell) -> tuple[Step, ...]:
    """Returns the attribution of METHOD.md section 4 at the prespecified alpha; parts whose arms do not exist are left out."""
    wanted = [
        ("schedule", "two phases instead of one", "alpha0", "baseline"),
        ("regularisation", "any targets of this shape", "shuffled", "alpha0"),
        ("own profile", "the user's own instead of another's", "treated", "shuffled"),
        ("the LLM", "the LLM's text instead of a template's", "treated", "template"),
        ("to input (init)", "transfer instead of the profile as the user table's start", "treated", "input_init"),
        ("to input (concat)", "transfer instead of the profile joined to the input", "treated", "input_concat"),
        ("KAR's adaptor", "KAR's hybrid-expert adaptor instead of the profile as it is", "kar", "static_profile"),
        ("to KAR", "transfer instead of KAR", "treated", "kar"),
        ("KAR + transfer", "both instead of KAR alone", "kar_treated", "kar"),
        ("in all", "treated instead of the plain model", "treated", "baseline"),
    ]
    found = [
        Step(name, f"{arm} \u2212 {control}: {meaning}", compare(results, cell, cell.claim_alpha, control, arm=arm), arm, control)
        for name, meaning, arm, control in wanted
    ]
    return tuple(step for step in found if step.contrast is not None)


def blocks_of(results: Results, cell: Cell) -> list[str]:
    """Returns what forbids a verdict on a cell, one sentence each."""
    blocks = []
    entries = profiles_of(results, cell)
    if not entries:
        blocks.append("nothing is known of who wrote the profiles: the study's card does not name them")
    elif not all(entry.get("is_llm") for entry in entries):
        blocks.append(f"no LLM wrote these profiles ({cell.factors['llm']})")
    for status, reason in dict.fromkeys(map(certificate, entries)):
        if status not in ("verified", "declared"):
            blocks.append(f"the leak certificate is {status}: {reason}" if reason else f"the leak certificate is {status}")
    unfinished = unfinished_of(results, cell)
    return blocks + [sentence for arm in MUST_CONVERGE for sentence in unfinished.get(arm, ())]


def unfinished_of(results: Results, cell: Cell) -> dict[str, list[str]]:
    """Returns arm to sentences that it has not converged, or that this is not known; arms that have are left out."""
    found: dict[str, list[str]] = {}
    treated = cell.treated.get(cell.claim_alpha)
    for arm, runs in (*cell.controls.items(), *((("treated", treated),) if treated is not None else ())):
        if late := late_runs(results, runs):
            words = f"{arm} has not converged: its best epoch is the last one in {late} of {count(len(runs.rows), 'trial')}"
            found.setdefault(arm, []).append(words)
        if unknown := int(results.trials["converged"].iloc[list(runs.rows.values())].isna().sum()):
            words = f"it is not known whether {arm} has converged in {unknown} of {count(len(runs.rows), 'trial')}"
            found.setdefault(arm, []).append(words)
    return found


def flags_of(results: Results, cell: Cell, levels: Mapping[str, float]) -> tuple[str, ...]:
    """Returns what a reader of a cell's numbers should know."""
    flags = []
    for arm, runs in [*cell.controls.items(), *((f"treated at alpha {a:g}", r) for a, r in cell.treated.items())]:
        late = late_runs(results, runs)
        if late:
            flags.append(f"not converged: {arm}, best epoch at the end in {late} of {count(len(runs.rows), 'trial')}")
    flags += _uneven(cell)
    treated = cell.treated.get(cell.claim_alpha)
    if treated is None:
        flags.append(f"treated at the prespecified alpha {cell.claim_alpha:g} has not finished")
    if levels.get("EASE", 0) > 0 and "alpha0" in levels:  # relative to 0 nothing is any per cent worse
        gap = results.sign() * (1 - levels["alpha0"] / levels["EASE"])
        if gap > 0:
            flags.append(f"below EASE: without transfer the model is {gap:.0%} worse than it")
    alignments, model = alignments_of(results, cell), MODELS.get(str(cell.factors["model"]))
    if "pair" in alignments:
        flags.append(f"pair-level: the tapped layer {cell.factors['layer']} depends on the item of a row as well as on the user")
    if "sequence" in alignments or (model is not None and model.family == "sequential"):
        flags.append(
            "sequential: a history's every prefix is taught a profile written from all of it, which knows what comes after the prefix"
        )
    return tuple(flags)


def _uneven(cell: Cell) -> list[str]:
    """Returns the flag of a cell whose arms did not finish the same splits and seeds."""
    arms = {**cell.controls, **{f"treated at alpha {alpha:g}": runs for alpha, runs in cell.treated.items()}}
    if len({frozenset(runs.rows) for runs in arms.values()}) < 2:
        return []
    most = max(len(runs.rows) for runs in arms.values())
    fewer = [f"{arm} {len(runs.rows)}" for arm, runs in arms.items() if len(runs.rows) < most]
    told = f"{listed(fewer)} of {most}" if fewer else f"{most} of each arm, but other seeds or splits"
    return [f"trials differ: {told}; arms are compared on those that both have"]


def alignments_of(results: Results, cell: Cell) -> set[str]:
    """Returns how the rows of a cell's tapped layer belong to users, see `llmkt_ray.transfer.taps`; empty where the card does not say."""
    mine = [entry for entry in results.card.get("cells", []) if all(entry.get(name) == cell.factors[name] for name in ("model", "layer"))]
    return {str(entry["alignment"]) for entry in mine if entry.get("alignment")}


def late_runs(results: Results, runs: Runs) -> int:
    """Returns how many trials selected the last evaluated epoch."""
    if not runs.rows:
        return 0
    converged = results.trials["converged"].iloc[list(runs.rows.values())]
    return int((converged.astype(object) == False).sum())  # noqa: E712 - None means that it does not apply


def turned_of(results: Results, cell: Cell, gain: Contrast | None) -> tuple[str, ...]:
    """Returns the flag of a cell whose metric over all rows says the opposite of its users' own, in protocol `labelled`.

    Args:
        results: the study's results.
        cell: a cell.
        gain: the contrast of its treated with its alpha0; None where there is none.
    """
    if not results.labelled or gain is None:
        return ()
    treated, alpha0 = cell.treated[cell.claim_alpha], cell.controls["alpha0"]
    column = results.trials[f"test_{results.metric}"]
    one, other = (float(column.iloc[list(shared(a, b).rows.values())].mean()) for a, b in ((treated, alpha0), (alpha0, treated)))
    if results.sign() * (one - other) * gain.difference.estimate >= 0:
        return ()
    return (
        f"opposite over all rows: {results.metric} over all rows is {one:.4f} treated and {other:.4f} alpha0, the mean of the users' own "
        f"{gain.mean_arm:.4f} and {gain.mean_control:.4f}",
    )


def levelled(cell: Cell, contrasts: Mapping[str, Contrast]) -> dict[str, Runs]:
    """Returns arm to the trials that its level is of: those that it is compared on with treated, all where it is not compared."""
    treated = cell.treated.get(cell.claim_alpha)
    runs = {arm: shared(of_arm, treated) if arm in contrasts else of_arm for arm, of_arm in cell.controls.items()}
    if treated is not None:
        runs["treated"] = shared(treated, cell.controls["alpha0"]) if "alpha0" in contrasts else treated
    return {arm: of_arm for arm, of_arm in runs.items() if of_arm.rows}


def levels_of(results: Results, cell: Cell, contrasts: Mapping[str, Contrast]) -> dict[str, float]:
    """Returns the mean test value of every arm at the prespecified alpha, and of the references of the same splits.

    An arm that is compared with treated has the mean of that contrast, so that levels and contrasts agree where trials are missing;
    treated has that of its contrast with alpha0.
    """
    means = {arm: c.mean_control for arm, c in contrasts.items()}
    if "alpha0" in contrasts:
        means["treated"] = contrasts["alpha0"].mean_arm
    levels = {
        arm: means[arm] if arm in means else float(results.tested.iloc[list(runs.rows.values())].mean())
        for arm, runs in levelled(cell, contrasts).items()
    }
    return {**levels, **references_of(results, cell.factors["dataset"], cell.factors["train_share"])}


def unclaimed(findings: Sequence[Finding]) -> str:
    """Returns a sentence that says which of the cells behind an answer have no verdict, and why; empty where all have one.

    An answer is read alone too, on the page and in `verdict.json`: what forbids a verdict on its cells forbids to take it for one.
    """
    blocked = [finding for finding in findings if finding.claim.outcome == "no verdict"]
    if not blocked:
        return ""
    where = "it" if len(findings) == 1 else f"{len(blocked)} of its {len(findings)} cells"
    reasons = list(dict.fromkeys(reason for finding in blocked for reason in finding.claim.reasons))
    more = f"; and {count(len(reasons) - MOST_REASONS, 'more', 'more')}" if len(reasons) > MOST_REASONS else ""
    return f" No verdict on {where}: {'; '.join(reasons[:MOST_REASONS])}{more}."


def of_contexts(findings: Sequence[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Returns (dataset, model) to its findings."""
    found: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        found.setdefault((str(finding.cell.factors["dataset"]), str(finding.cell.factors["model"])), []).append(finding)
    return found


def references_of(results: Results, dataset: str, train_share: Any) -> dict[str, float]:
    """Returns reference model to mean test value over the splits of a dataset."""
    mine = results.references.assign(tested=results.tested)
    mine = mine[mine["dataset"] == dataset]
    if isinstance(train_share, float):
        mine = mine[np.isclose(mine["train_share"].astype(float), train_share)]
    means = mine.groupby("model")["tested"].mean()
    return {str(name): float(value) for name, value in means.items() if pd.notna(value)}


def profiles_of(results: Results, cell: Cell) -> list[dict[str, Any]]:
    """Returns the card's entries of the profiles that a cell was made with."""
    keys = {results.trials["split_key"].iloc[row] for runs in cell.treated.values() for row in runs.rows.values()}
    mine = (cell.factors["llm"], cell.factors["dataset"])
    entries = [p for p in results.card.get("profiles", []) if (p.get("llm"), p.get("dataset")) == mine]
    return [p for p in entries if not keys or p.get("split_key") in (None, *keys)]


def certificate(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Returns (status, reason) of the leak certificate of a card's profiles entry; "unknown" where there is none."""
    value = entry.get("certificate")
    if isinstance(value, Mapping):
        return str(value.get("status", "unknown")), str(value.get("reason", ""))
    return str(value or "unknown"), ""


def _adjusted(tables: list[dict[Any, Contrast]], correct: Any) -> list[dict[Any, float]]:
    """Returns the p-values of all contrasts of all cells, corrected together."""
    flat = [(at, name) for at, table in enumerate(tables) for name in table]
    values = correct([tables[at][name].difference.p for at, name in flat])
    adjusted: list[dict[Any, float]] = [{} for _ in tables]
    for (at, name), value in zip(flat, values, strict=True):
        adjusted[at][name] = float(value)
    return adjusted
