"""Which kinds (genres, categories, makers) of a catalogue a text names, found by words: a catalogue may have a hundred thousand of them."""

import re
from collections.abc import Iterable

_UNIT = re.compile(r"\w+|\W")
_WORD = re.compile(r"\w")


class KindIndex:
    """The kinds of a catalogue by their words and signs.

    Args:
        kinds: as the catalogue writes them; of those that differ in case alone the last one counts.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self._kinds = {units: kind for kind in kinds if (units := _units(kind.casefold()))}
        self._lengths: dict[str, set[int]] = {}
        for units in self._kinds:
            self._lengths.setdefault(units[0], set()).add(len(units))

    def named(self, text: str) -> set[str]:
        r"""Returns the kinds that a text names, whatever their case: sign by sign, and not as a part of a longer word.

        The same as `(?<!\w)kind(?!\w)` sought for every kind: "drama" is not in "melodrama", "sci-fi" not in "sci fi".
        """
        units = ("", *_units(text.casefold()), "")
        found = set()
        for at, first in enumerate(units):
            for length in self._lengths.get(first, ()):
                kind = self._kinds.get(units[at : at + length])
                if kind is not None and _may_touch(first, units[at - 1]) and _may_touch(units[at + length - 1], units[at + length]):
                    found.add(kind)
        return found


def _may_touch(edge: str, beside: str) -> bool:
    """Whether a kind may begin or end here: a word is whole as it is, a sign must not touch a word."""
    return bool(_WORD.match(edge)) or not _WORD.match(beside)


def _units(text: str) -> tuple[str, ...]:
    return tuple(_UNIT.findall(text))
