"""Which titles of the catalogue a text names, found by words; texts and titles are untrusted and only compared."""

import re
from collections.abc import Iterable, Sequence

from llmkt_ray.data.history import Item

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_ARTICLE_LAST = re.compile(r"^(.*), (the|a|an|les?|la|das|der|die|el|il)$")
_QUOTED = re.compile(r"[\"\u201c\u201e\u00ab*]([^\"\u201c\u201d\u201e\u00ab\u00bb*\n]{4,80})[\"\u201d\u201c\u00bb*]")
_FEWEST_CHARS = 8
"""Shorter titles are too often plain words."""


class TitleIndex:
    """The titles of a catalogue by their words.

    Args:
        items: the catalogue in index order; of equal titles the items share the finds.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items: dict[tuple[str, ...], list[int]] = {}
        self._all: set[tuple[str, ...]] = set()
        for index, item in enumerate(items):
            for title in spellings(item.title or ""):
                words = _words(title)
                self._all.add(words)
                if len(title) >= _FEWEST_CHARS and words:
                    self._items.setdefault(words, []).append(index)
        self._lengths = sorted({len(words) for words in self._items}, reverse=True)

    def named(self, text: str) -> set[int]:
        """Returns the indices of the items whose titles a text names; of titles that lie in each other the longest counts."""
        words = _words(text.casefold())
        found: set[int] = set()
        at = 0
        while at < len(words):
            match = next((n for n in self._lengths if words[at : at + n] in self._items), None)
            if match is not None:
                found.update(self._items[words[at : at + match]])
            at += match or 1
        return found

    def unknown(self, text: str) -> list[str]:
        """Returns what a text sets in quotation marks or stars, in capitals, and no item of the catalogue is called: made-up titles."""
        quoted = (words for words in _QUOTED.findall(text) if words[0].isupper())
        return [title for title in quoted if not self._known(title)]

    def _known(self, title: str) -> bool:
        plain = re.sub(r"\s*\(\d{4}\)", "", title).strip(" .,;:!?").casefold()
        return any(_words(spelling) in self._all for spelling in spellings(plain))


def spellings(title: str) -> Iterable[str]:
    """Returns a title case-folded, as it is and with an article that comes last put first: "Usual Suspects, The"."""
    title = title.casefold()
    last = _ARTICLE_LAST.match(title)
    return (title, f"{last[2]} {last[1]}") if last else (title,)


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text))
