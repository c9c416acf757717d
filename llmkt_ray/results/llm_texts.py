"""What language models took for a study's texts beside what was planned, from its card."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

KINDS = ("profiles", "item_texts")
"""The card's lists of sets of texts."""


@dataclass(frozen=True)
class Figures:
    """One side, planned or taken; a figure that is not known of every set is None.

    Attributes:
        prompts: prompts asked; taken: retries included.
        prompt_tokens, output_tokens: planned output is the most that the model may write.
        gpu_hours: GPUs times hours.
        money: in the study's currency.
    """

    prompts: int | None
    prompt_tokens: int | None
    output_tokens: int | None
    gpu_hours: float | None
    money: float | None

    @property
    def tokens(self) -> int | None:
        """Prompt and output tokens."""
        return None if self.prompt_tokens is None or self.output_tokens is None else self.prompt_tokens + self.output_tokens


@dataclass(frozen=True)
class LlmTexts:
    """The finished texts of one LLM choice on one dataset, or of several.

    Attributes:
        llm, dataset: their labels.
        sets: sets of texts (one a split), each counted once.
        planned, taken: the sums over the sets.
    """

    llm: str
    dataset: str
    sets: int
    planned: Figures
    taken: Figures


def llm_texts(card: Mapping[str, Any]) -> list[LlmTexts]:
    """Returns one entry for every LLM choice and dataset whose texts a language model wrote, in the card's order."""
    found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for kind in KINDS:
        for entry in card.get(kind, []):
            notes = entry.get("notes") or {}
            if _int(notes.get("prompt_tokens")) is not None:
                found.setdefault((str(entry.get("llm")), str(entry.get("dataset"))), {})[str(entry.get("key"))] = notes
    return [LlmTexts(llm, dataset, len(sets), *_both(sets.values())) for (llm, dataset), sets in found.items()]


def total(texts: Sequence[LlmTexts]) -> LlmTexts:
    """Returns the sums over all choices and datasets."""
    planned, taken = _sum([each.planned for each in texts]), _sum([each.taken for each in texts])
    return LlmTexts("all", "all", sum(each.sets for each in texts), planned, taken)


def _both(sets: Iterable[Mapping[str, Any]]) -> tuple[Figures, Figures]:
    known = list(sets)
    # Texts of an earlier version have no plan beside them.
    planned = _sum([_figures(plan if isinstance(plan := notes.get("planned"), Mapping) else {}, "prompts", "money") for notes in known])
    return planned, _sum([_figures(notes, "asked", "cost") for notes in known])


def _figures(values: Mapping[str, Any], prompts: str, money: str) -> Figures:
    counts = (_int(values.get(name)) for name in (prompts, "prompt_tokens", "output_tokens"))
    return Figures(*counts, *(_float(values.get(name)) for name in ("gpu_hours", money)))


def _sum(figures: Sequence[Figures]) -> Figures:
    def over(values: tuple[Any, ...]) -> Any:
        return None if None in values else sum(values)

    return Figures(*map(over, zip(*map(astuple, figures), strict=True)))


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
