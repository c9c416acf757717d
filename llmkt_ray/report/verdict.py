"""The verdict in sentences: first what can be claimed, then what the rows show, each with its evidence."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.text import count, listed, percent_interval

TONES = {"worth it": "good", "works": "good", "no effect": "calm", "hurts": "bad", "inconclusive": "calm", "no verdict": "blocked"}
SAYS = {
    "worth it": "LLM knowledge works and is worth it",
    "works": "LLM knowledge works",
    "no effect": "LLM knowledge makes no difference that matters",
    "hurts": "LLM knowledge does harm",
    "inconclusive": "Inconclusive",
    "no verdict": "No verdict",
}


@dataclass(frozen=True)
class Line:
    """One cell in the verdict.

    Attributes:
        label: the cell.
        outcome: of its claim.
        tone: good, bad, calm or blocked.
        gain: what the rows show against alpha0, in words.
        reasons: why the outcome is what it is.
        number: of the cell.
    """

    label: str
    outcome: str
    tone: str
    gain: str
    reasons: tuple[str, ...]
    number: int


@dataclass(frozen=True)
class Verdict:
    """The top of the page.

    Attributes:
        headline: one sentence.
        tone: good, bad, calm or blocked.
        reasons: why, the commonest first, with the cells they hold for.
        lines: one a cell, claims first.
    """

    headline: str
    tone: str
    reasons: tuple[str, ...]
    lines: tuple[Line, ...]


def verdict(results: Results, findings: Sequence[Finding]) -> Verdict:
    """Returns the verdict on a study."""
    if not findings:
        waiting = "No trial with transfer has finished yet." if len(results.trials) else "Nothing has finished yet."
        return Verdict(f"No verdict: {waiting[0].lower()}{waiting[1:]}", "blocked", (), ())
    order = list(SAYS)
    lines = tuple(sorted((_line(f) for f in findings), key=lambda line: order.index(line.outcome)))
    outcomes = Counter(line.outcome for line in lines)
    total = len(lines)
    if len(outcomes) == 1:
        outcome = lines[0].outcome
        where = f" for {lines[0].label}" if total == 1 else f" in all {total} cells"
        shared = sorted(set.intersection(*(set(line.reasons) for line in lines)), key=lines[0].reasons.index)
        why = f": {shared[0]}" if outcome in ("no verdict", "inconclusive") and shared else where
        headline = f"{SAYS[outcome]}{why}."
        tone = TONES[outcome]
    else:
        there = [o for o in order if outcomes[o]]
        headline = "; ".join(f"{_lower(SAYS[o])} in {outcomes[o]} of {total} cells" for o in there)
        headline = f"{headline[0].upper()}{headline[1:]}."
        tone = TONES[there[0]]
    reasons = Counter(reason for line in lines for reason in line.reasons)
    worded = tuple(
        reason if times == total else f"{reason} ({times} of {count(total, 'cell')})" for reason, times in reasons.most_common(8)
    )
    return Verdict(headline, tone, worded, lines)


def _line(finding: Finding) -> Line:
    shown = [
        f"{percent_interval(finding.contrasts[name].relative)} over {name}"  # type: ignore[arg-type]
        for name in ("alpha0", "shuffled", "template")
        if name in finding.contrasts and finding.contrasts[name].relative is not None
    ]
    conditions = dict.fromkeys(c for contrast in finding.contrasts.values() for c in contrast.conditions)
    spoken = f"conditional on {listed([c.removeprefix('conditional on ') for c in conditions])}"
    gain = listed(shown) + (f"; {spoken}" if shown and conditions else "")
    outcome = finding.claim.outcome
    return Line(finding.cell.label, outcome, TONES[outcome], gain, finding.claim.reasons, finding.cell.number)


def _lower(text: str) -> str:
    return text if text.startswith("LLM") else text[0].lower() + text[1:]
