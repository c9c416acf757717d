"""Answers in sentences, each with its evidence and able to say that there is none."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmkt_ray.report.cells import SHOWN, Cell, Runs, valid_values
from llmkt_ray.report.default import default_of
from llmkt_ray.report.findings import Finding, of_contexts, unclaimed
from llmkt_ray.report.frames import factor_rows, gain_rows
from llmkt_ray.report.levels import averaged, compared, sentence
from llmkt_ray.report.load import Results
from llmkt_ray.report.text import count, hedged, left_out, listed, percent, percent_interval
from llmkt_ray.stats.contrast import Contrast
from llmkt_ray.stats.importance import SEED, importance
from llmkt_ray.stats.interval import MIXED_FROM, SPLITS_FROM
from llmkt_ray.stats.power import (
    detectable_over_seeds,
    detectable_over_splits,
    seeds_needed,
    seeds_needed_over_splits,
    smallest_detectable,
    splits_needed,
)
from llmkt_ray.stats.selection import Choice, choose, largest_gain, safe_range

EFFECTS = (0.05, 0.03, 0.02)
SAFE = 0.01


@dataclass(frozen=True)
class Answer:
    """One question with its answer.

    Attributes:
        topic: what kind of question it is; questions of one kind about many subjects become a table.
        subject: what it is asked about.
        question: as a reader would ask it.
        answer: one or two sentences.
        evidence: what it rests on, and its conditions.
    """

    topic: str
    subject: str
    question: str
    answer: str
    evidence: str


def answers(results: Results, findings: Sequence[Finding], shares: dict[str, float]) -> tuple[Answer, ...]:
    """Returns the answers that the study holds data for.

    Args:
        results: the study's results.
        findings: its cells.
        shares: importance of the factors, see `factor_importance`.
    """
    if not any(f.cell.treated for f in findings):
        return ()
    made = [
        *_best(results, findings), *_safe(results, findings), *_layer(results, findings), *_matters(results, shares),
        *_largest(results, findings), *_default(results, findings), *_power(results, findings),
    ]  # fmt: skip
    return tuple(made)


def factor_importance(results: Results, findings: Sequence[Finding], method: str = "fanova") -> dict[str, float]:
    """Returns factor to importance for the validation value relative to the mean of its dataset and model, treated trials only."""
    frame = factor_rows(results, findings)
    return importance(frame, "value", method) if len(frame) else {}


def choose_alpha(results: Results, cell: Cell) -> Choice[float] | None:
    """Returns the alpha with the best mean validation value, None where nothing finished."""
    return choose({alpha: valid_values(results, runs) for alpha, runs in cell.treated.items()}, lower_is_better=results.sign() < 0)


def _best(results: Results, findings: Sequence[Finding]) -> list[Answer]:
    made = []
    for (dataset, model), cells in of_contexts(findings).items():
        values = {(place, alpha): valid_values(results, runs) for place, f in enumerate(cells) for alpha, runs in f.cell.treated.items()}
        choice = choose(values, lower_is_better=results.sign() < 0)
        if choice is None:
            continue
        value, (finding, alpha) = choice.means[choice.best], (cells[choice.best[0]], choice.best[1])
        gain = finding.grid.get(alpha)
        worth = "no alpha0 to compare it with"
        if gain is not None and gain.relative is not None:
            conditions = f", {listed(list(gain.conditions))}" if gain.conditions else ""
            worth = f"test gain over alpha0 {percent_interval(gain.relative)}{conditions}"
        told, seeds = ".", gain.difference.n_seeds if gain is not None else MIXED_FROM
        if seeds < MIXED_FROM:
            pass  # said before it
        elif gain is not None and gain.difference.low <= 0 <= gain.difference.high:
            told = ": inconclusive, it cannot be told apart from alpha0."
        elif gain is not None and gain.difference.high < 0:
            told = " of those with transfer, but alpha0, without it, is better."
        unfinished = left_out([_configuration(cells[place].cell, alpha) for place, alpha in choice.left_out])
        made.append(
            Answer(
                "Best configuration",
                f"{model} on {dataset}",
                f"What is the best configuration of {model} on {dataset}?",
                hedged(f"{_configuration(finding.cell, alpha)}{told}", seeds),
                f"{'Highest' if results.sign() > 0 else 'Lowest'} mean validation {results.metric} ({value:.4f}) of "
                f"{count(len(choice.means), 'configuration')}; {worth}. "
                f"The best of many is flattered by its choice.{unfinished}{unclaimed([finding])}",
            )
        )
    return made


def _configuration(cell: Cell, alpha: float) -> str:
    return f"alpha {alpha:g}" + (f", {cell.detail}" if cell.detail else "")


def _safe(results: Results, findings: Sequence[Finding]) -> list[Answer]:
    made = []
    for finding in findings:
        choice, cell = choose_alpha(results, finding.cell), finding.cell
        if choice is None or len(cell.treated) < 2:
            continue
        best = choice.best
        found = {
            alpha: c for alpha, runs in cell.treated.items() if alpha != best
            and (c := averaged(results, [(runs, cell.treated[best])], results.metric)) is not None and c.relative is not None
        }  # fmt: skip
        if not found:
            continue
        unknown = [alpha for alpha in cell.alphas if alpha != best and alpha not in found]
        safe = safe_range({alpha: c.relative for alpha, c in found.items()} | dict.fromkeys(unknown), best, SAFE)
        seeds = min(
            [found[alpha].difference.n_seeds for alpha in safe if alpha != best], default=max(c.difference.n_seeds for c in found.values())
        )
        conditions = dict.fromkeys(condition for c in found.values() for condition in c.conditions)
        said = (
            f"{safe[0]:g} to {safe[-1]:g}"
            if len(safe) > 1
            else f"inconclusive: only {best:g} itself, no neighbour is shown to be within {SAFE:.0%} of it"
        )
        made.append(
            Answer(
                "Safe alphas",
                cell.label,
                f"Which alphas are safe for {cell.label}?",
                hedged(f"{said[0].upper()}{said[1:]}.", seeds),
                f"Lower 95 % bound of the paired test difference to alpha {best:g} (the best on validation) is at least "
                f"{percent(-SAFE, 0)}; to it: "
                + ", ".join(
                    f"alpha {alpha:g} {percent_interval(c.relative)}" for alpha, c in sorted(found.items()) if c.relative is not None
                )
                + "".join(
                    f"; alpha {alpha:g} {'cannot be compared with it' if alpha in cell.treated else 'did not finish'}" for alpha in unknown
                )
                + (f"; {listed(list(conditions))}" if conditions else "")
                + f".{left_out([f'alpha {alpha:g}' for alpha in choice.left_out])}{unclaimed([finding])}",
            )
        )
    return made


def _layer(results: Results, findings: Sequence[Finding]) -> list[Answer]:
    made = []
    for one in compared(results, findings, "layer"):
        said = sentence(results, one)
        if said is not None:
            question, answer, evidence = said
            evidence += f" At the prespecified alpha; read it with the heat map.{unclaimed(of_contexts(findings)[one.dataset, one.model])}"
            made.append(Answer("Best layer", one.title, question, answer, evidence))
    return made


def _matters(results: Results, shares: dict[str, float]) -> list[Answer]:
    if not shares:
        return []
    floor = shares.get(SEED)
    above = [(name, share) for name, share in shares.items() if name != SEED and share > (floor or 0.0)]
    if floor is None:
        said = "Inconclusive: all trials have one seed, so there is no noise floor that a factor could be above."
    elif not above:
        said = "Nothing that was varied: every factor is below the noise floor, the importance of the seed."
    else:
        name, share = above[0]
        said = f"{name.replace('_', ' ').capitalize()} ({share:.0%} of the variation)"
        said += f", {share / floor:.1f} times the noise floor." if floor else "; the seed explains nothing."
    evidence = "; ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in list(shares.items())[:6])
    return [
        Answer(
            "What matters most",
            "all",
            "What matters most?",
            said,
            f"fANOVA on validation {results.metric} relative to its dataset and model: {evidence}.",
        )
    ]


def _largest(results: Results, findings: Sequence[Finding]) -> list[Answer]:
    rows = gain_rows(results, findings)
    of_cells = {f.cell.number: f for f in findings}
    at = [(int(c), float(a)) for c, a in zip(rows["cell"], rows["alpha"], strict=True)]
    names = {one: f"{of_cells[one[0]].cell.label}, alpha {one[1]:g}" for one in at}
    rows = rows.assign(config=[names[one] for one in at])
    found = largest_gain(rows.groupby(["config", "seed"], as_index=False)[["valid", "test"]].mean())
    if found is None:
        return []
    number, alpha = next(one for one in at if names[one] == found.config)
    cell = of_cells[number].cell
    chosen = count(len(found.choosing), "seed")
    if found.honest is None:
        judged = "There are no other seeds to judge it on, so nothing is left to claim."
    else:
        rest = averaged(
            results, [(_only(cell.treated[alpha], found.judging), _only(cell.controls["alpha0"], found.judging))], results.metric
        )
        interval = percent_interval(rest.relative) if rest is not None and rest.relative is not None else percent(found.honest)
        conditions = f", {listed(list(rest.conditions))}" if rest is not None and rest.conditions else ""
        judged = f"On {count(len(found.judging), 'seed')} that did not choose it: {interval}{conditions}."
    searched = f"{count(found.searched, 'configuration')} searched in {count(rows['cell'].nunique(), 'cell')}"
    settings = ", ".join(f"{SHOWN[name]} {_plain(value)}" for name, value in cell.factors.items() if name in SHOWN and value != "-")
    return [
        Answer(
            "Largest gain",
            "all",
            "How large is the largest gain, and does it last?",
            f"{percent(found.apparent)} over alpha0 for {found.config}, on the {chosen} that chose it. {judged}",
            f"The best on validation of {searched}; the more are "
            f"searched, the more the first number flatters. Conditions: {settings}.{unclaimed([of_cells[number]])}",
        )
    ]


def _only(runs: Runs, seeds: Sequence[int]) -> Runs:
    """Returns the trials of some seed indices."""
    return Runs(runs.arm, runs.alpha, {at: row for at, row in runs.rows.items() if at[1] in seeds})


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(results: Results, findings: Sequence[Finding]) -> list[Answer]:
    found = default_of(results, findings)
    if found is None:
        return []
    default, _ = found
    judged = []
    for what, parts in (("dataset", default.by_dataset), ("model", default.by_model)):
        if parts:
            worst = max(parts, key=lambda one: one.regret)
            lost = f"{percent(max(0.0, worst.regret))[1:]} at worst ({worst.model} on {worst.dataset})"
            judged.append(f"chosen without a {what} it loses {lost} against that one's own choice")
        else:
            judged.append(f"there is one {what} only, so leaving one out cannot judge it")
    # alpha0 is a configuration too, whose gain is 0: what is below it on validation is no default to recommend.
    better = "No: without transfer is better on validation than every configuration that all share. The best of them is "
    better = "" if default.is_better else better
    return [
        Answer(
            "Default",
            "all",
            "Is there one default?",
            f"{better}{default.config}: {percent(default.test)} over alpha0 on test, on average. "
            f"{judged[0][0].upper()}{'; '.join(judged)[1:]}.",
            f"Best mean validation gain over {default.contexts} datasets \u00d7 models, of {count(default.shared, 'configuration')} that "
            f"ran in all of them; regret on test, means over seeds, no interval. As a study file: default.yaml.{unclaimed(findings)}",
        )
    ]


def _power(results: Results, findings: Sequence[Finding]) -> list[Answer]:
    known = [f.contrasts["alpha0"] for f in findings if "alpha0" in f.contrasts and f.contrasts["alpha0"].relative is not None]
    if not known:
        return []
    splits, seeds = min(c.n_splits for c in known), min(c.difference.n_seeds for c in known)
    over_splits = splits >= SPLITS_FROM
    if not over_splits and seeds < 2:
        said = "Unknown: with one seed the noise between seeds cannot be estimated."
        return [Answer("Power", "all", "What could this study have seen?", said, "Run at least 3 seeds.")]
    seen = [_power_over_splits(c) if over_splits else _power_over_seeds(c, seeds) for c in known]
    # One contrast for both halves of the sentence: of two cells that differ, a mean would be detectable in neither.
    detectable, had, unit, needed = sorted(seen, key=lambda one: one[0])[len(seen) // 2]
    words = [
        f"{count(n, unit)} would resolve {effect:.0%}"
        if n
        else f"no number of {unit}s resolves {effect:.0%} with these {'seeds and users' if unit == 'split' else 'users'}"
        for effect, n in needed.items()
    ]
    return [
        Answer(
            "Power",
            "all",
            "What could this study have seen?",
            f"With {had} effects under {detectable:.1%} over alpha0 cannot be resolved here; {listed(words)}.",
            f"Paired t with {unit}-level degrees of freedom, power .8, 95 %, from the "
            f"{'spread of splits and seeds' if over_splits else 'variance components'} of {count(len(known), 'contrast')} (median shown).",
        )
    ]


Power = tuple[float, str, str, dict[float, int | None]]
"""The smallest effect that a contrast can resolve, with how many of what, and how many of which unit would resolve each of `EFFECTS`."""


def _power_over_seeds(one: Contrast, seeds: int) -> Power:
    users = one.difference.n_users
    needed = {effect: seeds_needed(one.components, users, effect) for effect in EFFECTS}
    return smallest_detectable(one.components, seeds, users), count(seeds, "seed"), "seed", needed


def _power_over_splits(one: Contrast) -> Power:
    """More splits help where splits differ; where what all splits' seeds do decides, more seeds do."""
    assert one.relative is not None
    splits, seeds, crossed, shared = one.n_splits, one.relative.n_seeds, one.over_splits, one.shared_users
    detectable = detectable_over_splits(one.between_splits, splits, crossed, seeds, shared)
    if crossed and detectable == detectable_over_seeds(crossed, seeds, splits, shared):
        needed = {effect: seeds_needed_over_splits(crossed, splits, effect, shared) for effect in EFFECTS}
        return detectable, f"{count(seeds, 'seed')} on {splits} splits", "seed", needed
    needed = {effect: splits_needed(one.between_splits, effect, crossed, seeds, shared) for effect in EFFECTS}
    return detectable, count(splits, "split"), "split", needed
