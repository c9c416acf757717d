"""Kinds are found by words exactly as a regular expression for every one of them would."""

import random
import re

import pytest

from llmkt_ray.profiles.kinds import KindIndex

KINDS = [
    "Drama", "Sci-Fi", "Science Fiction", "Fiction", "R&B", "Hip Hop / Rap", "Children's", "Children", "(no genres listed)", "!!!", "+44",
    "Straße", "k.d. lang", "lang", "Simon & Garfunkel", "U2", "The The", "the", "C++", "Film-Noir",
    "\u00c9mile  Zola", "snow_white", "DRAMA",
]  # fmt: skip
TEXTS = [
    "Loves DRAMA, sci-fi and science fiction; no melodrama, sci fi or dramas.", "r&b and hip hop / rap, but hip hop/rap never", "childrens",
    "The children's books", "Children''s", "(no genres listed)", "x(no genres listed)y", "!!!", "wow!!!", "!!!!", "a !!! b",
    "+44", "1+44", "++44",
    "STRASSE", "strasse-", "k.d. langs", "k.d. lang.", "Simon & Garfunkel's", "u2", "u2b", "the the the", "C++", "C+++", "aC++", "C++a", "",
    "film-noir-", "\u00e9mile  zola", "\u00e9mile zola", "snow_white", "snow_whites _drama_ 'drama'", "drama\nfiction\ttiming", "  ",
]  # fmt: skip


def by_expressions(text: str) -> set[str]:
    folded = text.casefold()
    known = {kind.casefold(): kind for kind in KINDS}
    return {kind for fold, kind in known.items() if re.search(rf"(?<!\w){re.escape(fold)}(?!\w)", folded)}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_names_what_an_expression_finds(text: str) -> None:
    assert KindIndex(KINDS).named(text) == by_expressions(text)


def test_random_mixtures_of_kinds_and_signs_too() -> None:
    rng, index = random.Random(0), KindIndex(KINDS)
    pieces = [*KINDS, *"abc_ '-.+!&/()\n1\u00e9", "drama", " ", " ", " "]
    found = 0
    for _ in range(3_000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 8)))
        assert index.named(text) == by_expressions(text), text
        found += bool(index.named(text))
    assert found > 500


def test_many_kinds_are_not_looked_for_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 512 patterns the cache of expressions is of no use, and each would be compiled anew for every text."""
    monkeypatch.setattr(re, "compile", lambda *given: pytest.fail("an expression for every kind"))
    monkeypatch.setattr(re, "search", lambda *given: pytest.fail("an expression for every kind"))
    index = KindIndex(f"Maker {number}" for number in range(20_000))
    assert index.named("by maker 7 and Maker 19999, not by maker 20000") == {"Maker 7", "Maker 19999"}
