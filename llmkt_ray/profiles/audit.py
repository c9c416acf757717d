"""What METHOD.md, section 8, asks of profiles beside the flags, each figure for all users and by type of user.

Boilerplate, polarity, decades, titles, own-user retrieval and held-out titles. The last two read validation and test rows: they are an
audit of finished texts, stored with them, and nothing of it goes into a prompt, an embedding or a trial.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmkt_ray.data.history import Entry, Histories, histories, kinds_of
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.user_types import THIRDS, item_kinds, thirds, user_types
from llmkt_ray.profiles.kinds import KindIndex
from llmkt_ray.profiles.text_measures import TextMeasure, text_measures
from llmkt_ray.profiles.titles import TitleIndex

_WORD = re.compile(r"[\w']+")
_SENTENCE = re.compile(r"[.!?;]+\s|\n")
_AGAINST = re.compile(
    r"\b(?:dislik\w*|hat(?:e|es|ed)|avoid\w*|reject\w*|least|worst|unimpressed|weary|averse|poorly|low(?:er|est)? (?:ratings?|rated)|"
    r"(?:not|n't|no|little|less|rarely|never) (?:\w+ ){0,2}(?:enjoy|like|car(?:e|es)|favou?r|interest\w*|patience|drawn|fond|appeal\w*))",
    re.IGNORECASE,
)
_DECADE = re.compile(r"\b(?:(19|20)?(\d)0'?s|(twenties|thirties|forties|fifties|sixties|seventies|eighties|nineties))\b", re.IGNORECASE)
_DECADE_WORDS = {
    word: f"19{tens}0"
    for tens, word in enumerate(("twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties"), 2)
}
_GRAM = 5
_COMMON = 0.1
"""Share of the texts that a run of five words must be in to be boilerplate."""


def measures_of(texts: Sequence[str | None], data: PreparedData) -> tuple[list[TextMeasure], dict[str, float | None]]:
    """Returns the measures of profiles, one value a user each, and the namings of held-out titles (see `held_out_titles`).

    Args:
        texts: one for each user in index order, None where there is none or where it is not looked at.
        data: the split that the texts were written from.
    """
    past = histories(data)
    index = TitleIndex(past.items)
    named = {user: index.named(text) for user, text in enumerate(texts) if text}
    retrieval = "share of other users whose held-out rows fit the text less than the user's own do; 0.5: chance, 1: best"
    measures = [
        *text_measures(texts, past, item_kinds(data)[1]),
        *_wording(texts),
        *_against_history(texts, past),
        *_titles(texts, past, named, index),
        TextMeasure("own-user retrieval", retrieval, own_user_retrieval(texts, data, past)),
    ]
    return measures, held_out_titles(named, data)


def user_thirds(data: PreparedData) -> dict[str, np.ndarray]:
    """Returns type of user to the third (0, 1, 2; -1: not known) of each user, int8 `(n_users,)`."""
    users = np.arange(data.n_users)
    return {kind.name: thirds(kind.values, users) for kind in user_types(data)}


def by_type(measures: Sequence[TextMeasure], data: PreparedData) -> dict[str, Any]:
    """Returns measure to {meaning, all, by}, JSON values: the mean of all users, and those of the thirds of every type of user.

    A mean is None where the data do not hold what the measure needs.
    """
    groups = user_thirds(data)
    return {
        measure.name: {
            "meaning": measure.meaning,
            "all": _mean(measure.values),
            "by": {name: {label: _mean(measure.values[third == at]) for at, label in enumerate(THIRDS)} for name, third in groups.items()},
        }
        for measure in measures
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _wording(texts: Sequence[str | None]) -> list[TextMeasure]:
    grams = [set(_grams(text)) if text else set() for text in texts]
    counts = Counter(gram for own in grams for gram in own)
    most = max(2.0, _COMMON * sum(text is not None for text in texts))
    share = [np.mean([counts[gram] >= most for gram in own]) if own else np.nan for own in grams]
    return [TextMeasure("boilerplate", "share of a text's runs of five words that a tenth of all texts have, 0 to 1", np.array(share))]


def _grams(text: str) -> list[tuple[str, ...]]:
    words = _WORD.findall(text.casefold())
    return list(zip(*(words[start:] for start in range(_GRAM)), strict=False))


def _against_history(texts: Sequence[str | None], past: Histories) -> list[TextMeasure]:
    found = np.full((len(texts), 2), np.nan)
    known = KindIndex(kind for item in past.items for kind in kinds_of(item))
    for user, text in enumerate(texts):
        if text:
            history = past.of(user)
            found[user] = polarity(text, history, known), decades(text, history)
    return [
        TextMeasure("polarity", "share of the genres named that are praised or not as the user's train ratings say, 0 to 1", found[:, 0]),
        TextMeasure("decades", "share of the decades named that the user's train items are from, 0 to 1", found[:, 1]),
    ]


def polarity(text: str, history: Sequence[Entry], known: KindIndex) -> float:
    """Returns how many of the kinds that a text names it puts on the right side, in [0, 1]; NaN where ratings or kinds do not tell.

    A kind is named with dislike where its sentence has words of dislike; it is disliked where its mean train rating is below the user's.

    Args:
        text: the profile.
        history: the user's train rows.
        known: the kinds of the whole catalogue.
    """
    ratings: dict[str, list[float]] = {}
    for entry in history:
        if entry.rating is not None:
            for kind in kinds_of(entry.item):
                ratings.setdefault(kind, []).append(entry.rating)
    mean = float(np.mean([entry.rating for entry in history if entry.rating is not None])) if ratings else 0.0
    right = [
        (float(np.mean(ratings[kind])) < mean) == bool(_AGAINST.search(sentence))
        for sentence in _SENTENCE.split(text)
        for kind in known.named(sentence)
        if kind in ratings and float(np.mean(ratings[kind])) != mean
    ]
    return float(np.mean(right)) if right else float("nan")


def decades(text: str, history: Sequence[Entry]) -> float:
    """Returns the share of the decades named that the history has, in [0, 1]; NaN where none is named or no item has a year."""
    own = {f"{year[:3]}0" for entry in history if (year := entry.item.year or "")[:4].isdigit()}
    named = {
        _DECADE_WORDS[word.lower()] if word else f"{century or ('20' if tens in '012' else '19')}{tens}0"
        for century, tens, word in _DECADE.findall(text)
    }
    return len(named & own) / len(named) if named and own else float("nan")


def _titles(texts: Sequence[str | None], past: Histories, named: dict[int, set[int]], index: TitleIndex) -> list[TextMeasure]:
    foreign, unknown = np.full(len(texts), np.nan), np.full(len(texts), np.nan)
    for user, items in named.items():
        own = {entry.item.title for entry in past.of(user)}
        foreign[user] = any(past.items[item].title not in own for item in items)
        unknown[user] = bool(index.unknown(str(texts[user])))
    return [
        TextMeasure("foreign titles", "share of texts that name a title of the catalogue that is not in the user's train rows", foreign),
        TextMeasure("unknown titles", "share of texts that quote a title that is not in the catalogue", unknown),
    ]


def own_user_retrieval(texts: Sequence[str | None], data: PreparedData, past: Histories) -> np.ndarray:
    """Returns for each text the share of other users whose held-out rows fit it less than the user's own, `(n_users,)`, NaN: unknown.

    Rows of validation and test, which no text was written from, are documents of title, genres, maker and year; fit is TF-IDF cosine.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    described = [
        " ".join(filter(None, (i.title, *kinds_of(i), i.creator, f"{(i.year or '')[:3]}0s" if i.year else ""))) for i in past.items
    ]
    documents: list[list[str]] = [[] for _ in texts]
    for rows in (data.valid, data.test):
        for user, item in zip(rows.user.tolist(), rows.item.tolist(), strict=True):
            documents[user].append(described[item])
    found = np.full(len(texts), np.nan)
    users = np.array([user for user, text in enumerate(texts) if text and documents[user]], np.int64)
    if len(users) < 2:
        return found
    try:
        vectors = TfidfVectorizer(sublinear_tf=True).fit([" ".join(documents[user]) for user in users])
    except ValueError:  # no word in any item
        return found
    held = vectors.transform([" ".join(documents[user]) for user in users])
    fit = (vectors.transform([str(texts[user]) for user in users]) @ held.T).toarray()
    own = np.diag(fit)[:, None]
    found[users] = ((fit < own).sum(axis=1) + 0.5 * ((fit == own).sum(axis=1) - 1)) / (len(users) - 1)
    return found


def held_out_titles(named: dict[int, set[int]], data: PreparedData) -> dict[str, float | None]:
    """Returns how often texts name test items of their user (`observed`), how often texts of users without the item name it (`expected`).

    Their `ratio` should be near 1; well above it speaks of a leak, or of a model that knows the dataset. None where nothing is expected.

    Args:
        named: user index to indices of the items that the text names.
        data: the split.
    """
    counts = np.zeros(data.n_items)
    for items in named.values():
        counts[list(items)] += 1
    has: dict[int, set[int]] = {user: set() for user in named}
    for rows in (data.train_full, data.valid, data.test):
        for user, item in zip(rows.user.tolist(), rows.item.tolist(), strict=True):
            if user in has:
                has[user].add(item)
    without, by_owners = np.full(data.n_items, float(len(named))), np.zeros(data.n_items)
    for user, items in has.items():
        without[list(items)] -= 1
        by_owners[list(items & named[user])] += 1
    rate = (counts - by_owners) / np.maximum(without, 1)
    test = [(user, item) for user, item in zip(data.test.user.tolist(), data.test.item.tolist(), strict=True) if user in named]
    observed = sum(item in named[user] for user, item in test)
    expected = float(sum(rate[item] for _, item in test))
    return {"observed": float(observed), "expected": expected, "ratio": observed / expected if expected else None}
