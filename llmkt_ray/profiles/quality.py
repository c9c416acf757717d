"""Checks of profile texts without a human (METHOD.md, section 8): failures, diversity, faithfulness; by how active users are.

The texts are untrusted: they are counted and compared here, never interpreted.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.user_types import THIRDS
from llmkt_ray.profiles.audit import by_type, measures_of, user_thirds
from llmkt_ray.profiles.text_measures import TextMeasure

_REFUSAL = re.compile(r"\b(i'?m sorry|i am sorry|i can(?:no|')t|i am unable|i'm unable|as an ai|as a language model)\b", re.IGNORECASE)
_ECHO = re.compile(r"most telling first|use only what the list shows|do not mention the list|; rated \d|<\|?\w+\|?>", re.IGNORECASE)
_LATIN = re.compile(r"[A-Za-z]")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[\w']+")
_SHORT_WORDS, _LONG_WORDS = 15, 300
_NEAR = 0.95
_SAMPLE = 2_000
_ENGLISH = frozenset(
    ["the", "and", "of", "with", "to", "is", "are", "this", "that", "for", "who", "they", "their", "from", "by", "but", "not", "as", "at"]
)
_LEAST_ENGLISH = 0.06
"""Share of such words below which a text is taken for another language; English prose has about a fifth."""
_FLAGS = ("refused", "truncated", "over_long", "too_short", "echo", "other_script", "other_language", "duplicate")


def flags(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Returns for each kind of failure a bool `(n,)` over rows with a text.

    refused: declines to answer. truncated: ended at the token limit. over_long, too_short: above 300 or below 15 words. echo: repeats the
    prompt or markup. other_script: most letters are not Latin. other_language: Latin letters, hardly any of the commonest English words.
    duplicate: the very text of another user.
    """
    texts = [str(row["profile"]) for row in rows]
    words = np.array([len(_WORD.findall(text)) for text in texts])
    english = np.array([sum(word in _ENGLISH for word in _WORD.findall(text.casefold())) for text in texts])
    latin = np.array([2 * len(_LATIN.findall(text)) >= len(_LETTER.findall(text)) for text in texts], np.bool_)
    seen = Counter(texts)
    return {
        "refused": np.array([bool(_REFUSAL.search(text[:200])) for text in texts], np.bool_),
        "truncated": np.array([row["finish_reason"] == "length" for row in rows], np.bool_),
        "over_long": words > _LONG_WORDS,
        "too_short": words < _SHORT_WORDS,
        "echo": np.array([bool(_ECHO.search(text)) for text in texts], np.bool_),
        "other_script": ~latin,
        # A few words, too short anyway, do not tell a language.
        "other_language": latin & (words >= _SHORT_WORDS) & (english < _LEAST_ENGLISH * words),
        "duplicate": np.array([seen[text] > 1 for text in texts], np.bool_),
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """Returns distinct-n, in (0, 1]: different word n-grams over all of them (Li et al. 2016); higher is more diverse."""
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = [word.casefold() for word in _WORD.findall(text)]
        grams.update(zip(*(words[start:] for start in range(n)), strict=False))
    return len(grams) / max(1, grams.total())


def near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Returns which texts, bool `(n,)`, have a TF-IDF cosine above 0.95 with another one; fewer is better."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(texts) < 2:
        return np.zeros(len(texts), np.bool_)
    try:
        vectors = TfidfVectorizer(token_pattern=_WORD.pattern).fit_transform(texts)
    except ValueError:  # no text has a word, so there is nothing to compare
        return np.zeros(len(texts), np.bool_)
    cosines = (vectors @ vectors.T).tolil()
    cosines.setdiag(0)
    return np.asarray(cosines.tocsr().max(axis=1).toarray()[:, 0] > _NEAR)


def quality(table: pa.Table, data: PreparedData) -> dict[str, Any]:
    """Returns the figures of profiles (one row a user, in index order), JSON values.

    What compares texts with each other or with histories is looked at on a sample above 2,000 users.

    Returns:
        texts, errors (kind to count), flags (kind to share of the texts), flagged (share with any), words (mean), distinct_1, distinct_2,
        near_duplicates, kinds (precision, recall, f1), foreign_titles (share of texts that name a title of the catalogue that is not in the
        user's train rows), unknown_titles (share that quote a title that is not in the catalogue), measures (every figure for all users and
        for the thirds of every type of user), held_out_titles (see `audit`), sample (texts looked at for what is sampled), and by_activity:
        flagged and f1 of the least, middle and most active third.
    """
    rows = table.to_pylist()
    errors = Counter(str(row["error"]).partition(":")[0] for row in rows if row["profile"] is None)
    users = np.flatnonzero([row["profile"] is not None for row in rows])
    kept = [rows[user] for user in users]
    if not kept:
        return {"texts": 0, "errors": dict(errors)}
    texts = [str(row["profile"]) for row in kept]
    each = flags(kept)
    flagged = np.any(list(each.values()), axis=0)
    chosen = np.arange(len(kept))
    if len(kept) > _SAMPLE:
        chosen = np.sort(np.random.default_rng(0).choice(len(kept), _SAMPLE, replace=False))
    near = near_duplicates([texts[row] for row in chosen])

    def of_users(values: np.ndarray, at: np.ndarray) -> np.ndarray:
        found = np.full(len(rows), np.nan)
        found[at] = values
        return found

    own = [
        TextMeasure("flagged", "share of texts with any flag", of_users(flagged, users)),
        *(TextMeasure(f"flag {name}", f"share of texts that are {name}", of_users(each[name], users)) for name in _FLAGS),
        TextMeasure("near duplicates", "share of texts nearly equal to another one", of_users(near, users[chosen])),
    ]
    looked_at: list[str | None] = [None] * len(rows)
    for row in chosen:
        looked_at[users[row]] = texts[row]
    compared, held_out = measures_of(looked_at, data)
    by_name = {measure.name: measure.values for measure in compared}
    unknown = np.full(len(rows), np.nan)
    scores = np.stack([by_name.get(f"genre {name}", unknown) for name in ("precision", "recall")], axis=1)
    figures = by_type([*own, *compared], data) | distinct_by_type(looked_at, data)
    third_of = np.array_split(users[np.argsort([row["history_size"] for row in kept], kind="stable")], 3)
    any_flag = of_users(flagged, users)
    names = ("least_active", "middle", "most_active")
    return {
        "texts": len(kept),
        "sample": len(chosen),
        "errors": dict(errors),
        "flags": {name: float(each[name].mean()) for name in _FLAGS},
        "flagged": float(flagged.mean()),
        "words": float(np.mean([len(_WORD.findall(text)) for text in texts])),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "near_duplicates": float(near.mean()),
        "kinds": _agreement(scores),
        "foreign_titles": figures["foreign titles"]["all"],
        "unknown_titles": figures["unknown titles"]["all"],
        "measures": figures,
        "held_out_titles": held_out,
        "by_activity": {
            name: {"flagged": float(any_flag[third].mean()), "kinds": _agreement(scores[third])}
            for name, third in zip(names, third_of, strict=True)
            if len(third)
        },
    }


def distinct_by_type(texts: Sequence[str | None], data: PreparedData) -> dict[str, Any]:
    """Returns distinct-1 and distinct-2 in the shape of `audit.by_type`; it falls with the number of texts, so compare thirds only."""

    def over(users: np.ndarray, n: int) -> float | None:
        mine = [text for user in users if (text := texts[user])]
        return distinct(mine, n) if mine else None

    groups = user_thirds(data)
    return {
        f"distinct-{n}": {
            "meaning": f"different among all word {n}-grams, 0 to 1",
            "all": over(np.arange(len(texts)), n),
            "by": {
                name: {label: over(np.flatnonzero(third == at), n) for at, label in enumerate(THIRDS)} for name, third in groups.items()
            },
        }
        for n in (1, 2)
    }


def _agreement(scores: np.ndarray) -> dict[str, float] | None:
    """Returns mean precision, recall and their harmonic mean over rows without NaN; None where there are none."""
    scores = scores[~np.isnan(scores).any(axis=1)]
    if not len(scores):
        return None
    precision, recall = (float(value) for value in scores.mean(axis=0))
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0}
