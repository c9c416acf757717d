"""A text from the training history without a language model: the `template` control of METHOD.md section 4.

It says in plain language what a histogram would: favourite genres with shares, what sets the user apart from the
others, decades, best and worst rated titles, how active and how critical the user is. A gain of LLM-written profiles counts
only above this one.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from llmkt_ray.data.fields import ITEM_NOUNS
from llmkt_ray.data.history import Entry, Histories, Item, about_users, histories, kinds_of
from llmkt_ray.data.leaks import verify
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.base import Job, Written
from llmkt_ray.profiles.table import ProfileRow, as_table

TEMPLATE_VERSION = "template-1"
NAME = "template"

_LIKED, _DISLIKED = 0.7, 0.3
"""Positions on the dataset's rating scale above which a rating is a liking and below which a dislike (4 and 2 of 1 to 5)."""
_ACTIVITY = ((0.9, "one of the most active users"), (0.6, "an active user"), (0.3, "a moderately active user"), (0.0, "an occasional user"))
_TITLE_CHARS = 60
_DESCRIPTION_WORDS = 8


@dataclass(frozen=True)
class Population:
    """What is common to all users: the scale against which one user's taste stands out.

    Attributes:
        low, high: smallest and largest training rating; equal where there are no ratings.
        item_rating: mean training rating of each item, float64 `(n_items,)`; the overall mean where nobody rated it.
        mean_rating: mean training rating.
        kind_share: share of each genre (or category) among all train rows, each in [0, 1].
        sizes: sorted history sizes `(n_users,)`.
    """

    low: float
    high: float
    item_rating: np.ndarray
    mean_rating: float
    kind_share: dict[str, float]
    sizes: np.ndarray

    @staticmethod
    def of(past: Histories) -> "Population":
        """Returns the population of a split's histories."""
        n_items = len(past.items)
        counts = np.bincount(past.item_index, minlength=n_items)
        kinds: Counter[str] = Counter()
        for index in np.flatnonzero(counts):
            kinds.update(dict.fromkeys(kinds_of(past.items[index]), int(counts[index])))
        rows = max(1, len(past.item_index))
        if past.rating is None or not len(past.rating):
            low = high = mean = 1.0
            item_rating = np.ones(n_items)
        else:
            low, high, mean = float(past.rating.min()), float(past.rating.max()), float(past.rating.mean())
            sums = np.bincount(past.item_index, weights=past.rating, minlength=n_items)
            item_rating = np.where(counts > 0, sums / np.maximum(counts, 1), mean)
        return Population(low, high, item_rating, mean, {kind: n / rows for kind, n in kinds.items()}, np.sort(past.sizes()))


def refuse_without_facts(items: Iterable[Item], name: str) -> None:
    """Checks that something is known of the items: of a history of ids no text can be written, by nobody.

    Args:
        items: those of a dataset.
        name: the dataset's.

    Raises:
        ProfileError: no item has a field that a text can be made of.
    """
    if not any(item.title or kinds_of(item) or item.description for item in items):
        raise ProfileError(
            f"the items of {name!r} have no title, genres, category, creator or description, so no text can be made of a history; "
            "give the dataset an items table with one of these columns, or bring profiles of your own (llm: file)"
        )


def describe(history: Sequence[Entry], population: Population, domain: str) -> str:
    """Returns the profile text of one user, about 60 to 90 words.

    Args:
        history: the user's train rows; not empty.
        population: what the user is compared with.
        domain: "movies", "music", "books" or "generic".
    """
    one, many = ITEM_NOUNS[domain]
    rated = population.high > population.low
    liked, disliked = _sides(history, population) if rated else (list(history), [])
    liked_kinds = Counter(kind for entry in liked for kind in kinds_of(entry.item))
    sentences = []
    if liked_kinds:
        top = ", ".join(f"{kind} ({100 * n / len(liked):.0f}%)" for kind, n in _most(liked_kinds, 5))
        sentences.append(f"This user likes {top}.")
    special = _special(liked, population)
    if special:
        sentences.append(f"More than other users they like {_and(special)}.")
    decades = Counter(f"{year[:3]}0s" for entry in liked if (year := entry.item.year or "")[:4].isdigit())
    if decades:
        sentences.append(f"Favourite {many} are from the {_and(decade for decade, _ in _most(decades, 2))}.")
    best = _names(sorted(liked, key=lambda e: (-(e.rating or 0), -(e.count or 0), -_surprise(e, population), e.item.item_id)), 6)
    if best:
        how = "Best rated" if rated else "Chosen" if history[0].count is None else "Chosen most often"
        sentences.append(f"{how}: {'; '.join(best)}.")
    bad_kinds = Counter(kind for entry in disliked for kind in kinds_of(entry.item))
    shunned = [kind for kind, n in _most(bad_kinds, 6) if n > liked_kinds[kind]][:2]
    worst = _names(sorted(disliked, key=lambda e: (e.rating or 0, _surprise(e, population), e.item.item_id)), 2)
    if shunned or worst:
        sentences.append(f"They dislike {_and(shunned)}." if not worst else f"They dislike {_and([*shunned, *worst])}.")
    sentences.append(_habits(history, population, one if len(history) == 1 else many, rated))
    return " ".join(sentences)


def _sides(history: Sequence[Entry], population: Population) -> tuple[list[Entry], list[Entry]]:
    """Returns the liked and the disliked entries; a user who uses only one end of the scale is read around their own mean."""
    span = population.high - population.low
    ratings = np.array([entry.rating for entry in history], dtype=np.float64)
    place = (ratings - population.low) / span
    liked = place >= _LIKED
    if not liked.any():
        liked = ratings >= ratings.mean()
    disliked = (place <= _DISLIKED) & ~liked
    return [e for e, yes in zip(history, liked, strict=True) if yes], [e for e, yes in zip(history, disliked, strict=True) if yes]


def _special(liked: Sequence[Entry], population: Population) -> list[str]:
    """Returns up to three kinds that the user likes more often than all users choose them, by lift over at least 3 items."""
    counts = Counter(kind for entry in liked for kind in kinds_of(entry.item))
    # One item of a rare kind is chance, not taste: two are added to both sides before the ratio is taken.
    lifts = {kind: (n + 2) / (population.kind_share[kind] * len(liked) + 2) for kind, n in counts.items() if n >= 3 or len(liked) < 10}
    return [kind for kind in sorted(lifts, key=lambda kind: (-lifts[kind], kind)) if lifts[kind] > 1.15][:3]


def _surprise(entry: Entry, population: Population) -> float:
    """How far the user's rating lies above everybody's: a favourite of all says little about one."""
    return (entry.rating or 0.0) - float(population.item_rating[entry.index])


def _names(entries: Iterable[Entry], limit: int) -> list[str]:
    names = []
    for entry in entries:
        item = entry.item
        text = item.title or (" ".join(item.description.split()[:_DESCRIPTION_WORDS]) if item.description else None)
        if text:
            names.append(" ".join(text.split())[:_TITLE_CHARS])
        if len(names) == limit:
            break
    return names


def _habits(history: Sequence[Entry], population: Population, noun: str, rated: bool) -> str:
    rank = float(np.searchsorted(population.sizes, len(history), side="right")) / len(population.sizes)
    activity = next(text for least, text in _ACTIVITY if rank > least or least == 0.0)
    sentence = f"They are {activity} ({len(history)} {noun})"
    if not rated:
        return f"{sentence}."
    gap = (float(np.mean([entry.rating for entry in history])) - population.mean_rating) / (population.high - population.low)
    manner = "generous" if gap > 0.06 else "critical" if gap < -0.06 else "balanced"
    return f"{sentence} and {manner} in rating."


def _most(counts: Counter[str], limit: int) -> list[tuple[str, int]]:
    """The most frequent first, ties by name: `Counter.most_common` would take them as they came."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]


def _and(parts: Iterable[str]) -> str:
    names = list(parts)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


class TemplateEngine:
    """Writes every profile from its user's history by `describe`.

    Args:
        full_history: from the full train split although the data is thinned by `train_share`.
        demographics: whether age, gender and occupation end the text, as they may enter a language model's prompt.
    """

    is_llm = False
    draws = False

    def __init__(self, full_history: bool, demographics: bool = False) -> None:
        self._full = full_history
        self._demographics = demographics

    def identity(self) -> dict[str, Any]:
        """Returns the template's version and what it reads."""
        identity: dict[str, Any] = {"engine": NAME, "version": TEMPLATE_VERSION, "full_history": self._full}
        return identity | ({"demographics": True} if self._demographics else {})

    def write(self, data: PreparedData, job: Job) -> Written:
        """Writes one row for every user; a user without train rows has none to write from and gets an error row.

        Raises:
            ProfileError: the items have no field that a text can be made of.
        """
        past = histories(data, full=self._full)
        refuse_without_facts(past.items, data.name)
        population = Population.of(past)
        about = about_users(data) if self._demographics else [None] * data.n_users
        rows = []
        for done, ((user_id, history), known) in enumerate(zip(past, about, strict=True), start=1):
            text = describe(history, population, data.domain) if history else None
            if text and known:
                text += f" About them: {known}."
            rows.append(
                ProfileRow(
                    user_id=user_id,
                    profile=text,
                    llm=NAME,
                    prompt_version=TEMPLATE_VERSION,
                    prompt_hash=sha256(text.encode()).hexdigest() if text else None,
                    history_size=len(history),
                    attempts=1,
                    error=None if text else "no_history: the user has no train rows",
                )
            )
            if done % 1000 == 0 or done == len(past):
                job.progress(done, len(past))
        return Written(as_table(rows), verify(data, *past.pairs()))
