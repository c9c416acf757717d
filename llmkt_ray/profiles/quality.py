"""Checks of profile texts without a human (METHOD.md, section 8): failures, diversity, faithfulness; by how active users are.

The texts are untrusted: they are counted and compared here, never interpreted.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from llmkt_ray.data.history import Entry, histories, kinds_of
from llmkt_ray.data.prepared import PreparedData

_REFUSAL = re.compile(r"\b(i'?m sorry|i am sorry|i can(?:no|')t|i am unable|i'm unable|as an ai|as a language model)\b", re.IGNORECASE)
_ECHO = re.compile(r"most telling first|use only what the list shows|do not mention the list|; rated \d|<\|?\w+\|?>", re.IGNORECASE)
_LATIN = re.compile(r"[A-Za-z]")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[\w']+")
_SHORT_WORDS, _LONG_WORDS = 15, 300
_NEAR = 0.95
_SAMPLE = 2_000
_TOP_KINDS = 5
_TITLE_CHARS = 8
"""Shorter titles are too often plain words."""
_FLAGS = ("refused", "truncated", "over_long", "too_short", "echo", "other_script", "duplicate")


def flags(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Returns for each kind of failure a bool `(n,)` over rows with a text.

    refused: declines to answer. truncated: ended at the token limit. over_long, too_short: above 300 or below 15 words. echo: repeats the
    prompt or markup. other_script: most letters are not Latin. duplicate: the very text of another user.
    """
    texts = [str(row["profile"]) for row in rows]
    words = np.array([len(_WORD.findall(text)) for text in texts])
    seen = Counter(texts)
    return {
        "refused": np.array([bool(_REFUSAL.search(text[:200])) for text in texts], np.bool_),
        "truncated": np.array([row["finish_reason"] == "length" for row in rows], np.bool_),
        "over_long": words > _LONG_WORDS,
        "too_short": words < _SHORT_WORDS,
        "echo": np.array([bool(_ECHO.search(text)) for text in texts], np.bool_),
        "other_script": np.array([2 * len(_LATIN.findall(text)) < len(_LETTER.findall(text)) for text in texts], np.bool_),
        "duplicate": np.array([seen[text] > 1 for text in texts], np.bool_),
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """Returns distinct-n, in (0, 1]: different word n-grams over all of them (Li et al. 2016); higher is more diverse."""
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = [word.casefold() for word in _WORD.findall(text)]
        grams.update(zip(*(words[start:] for start in range(n)), strict=False))
    return len(grams) / max(1, grams.total())


def near_duplicates(texts: Sequence[str]) -> float:
    """Returns the share of texts, in [0, 1], whose TF-IDF cosine with another one is above 0.95; lower is better."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(texts) < 2:
        return 0.0
    vectors = TfidfVectorizer(token_pattern=_WORD.pattern).fit_transform(texts)
    cosines = (vectors @ vectors.T).tolil()
    cosines.setdiag(0)
    return float((cosines.tocsr().max(axis=1).toarray() > _NEAR).mean())


def kind_agreement(text: str, history: Sequence[Entry], known: dict[str, str]) -> tuple[float, float] | None:
    """Returns (precision, recall), each in [0, 1], of the kinds that a text names against the user's kinds.

    Precision: share of the named kinds that are in the history at all. Recall: share of the five most frequent kinds of the
    history that are named. None where the history has no kinds.

    Args:
        text: the profile.
        history: the user's train rows.
        known: case-folded kind to kind, of the whole catalogue.
    """
    counts = Counter(kind for entry in history for kind in kinds_of(entry.item))
    if not counts:
        return None
    folded = text.casefold()
    named = {kind for fold, kind in known.items() if re.search(rf"(?<!\w){re.escape(fold)}(?!\w)", folded)}
    top = [kind for kind, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:_TOP_KINDS]]
    precision = len(named & set(counts)) / len(named) if named else 0.0
    return precision, len(named & set(top)) / len(top)


def quality(table: pa.Table, data: PreparedData) -> dict[str, Any]:
    """Returns the figures of profiles (one row a user, in index order), JSON values.

    Titles, kinds and near-duplicates are looked at on a sample above 2,000 users.

    Returns:
        texts, errors (kind to count), flags (kind to share of the texts), flagged (share with any), words (mean), distinct_1, distinct_2,
        near_duplicates, kinds (precision, recall, f1), foreign_titles (share of texts that name a title of the catalogue that is not in the
        user's train rows), and by_activity: flagged and f1 of the least, middle and most active third.
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
    past = histories(data)
    known = {kind.casefold(): kind for item in past.items for kind in kinds_of(item)}
    titles = {item.title.casefold() for item in past.items if item.title and len(item.title) >= _TITLE_CHARS}
    scores, foreign = np.full((len(kept), 2), np.nan), 0
    for row in chosen:
        history = past.of(int(users[row]))
        scores[row] = kind_agreement(texts[row], history, known) or (np.nan, np.nan)
        foreign += _names_foreign(texts[row].casefold(), {entry.item.title.casefold() for entry in history if entry.item.title}, titles)
    thirds = np.array_split(np.argsort([row["history_size"] for row in kept], kind="stable"), 3)
    names = ("least_active", "middle", "most_active")
    return {
        "texts": len(kept),
        "errors": dict(errors),
        "flags": {name: float(each[name].mean()) for name in _FLAGS},
        "flagged": float(flagged.mean()),
        "words": float(np.mean([len(_WORD.findall(text)) for text in texts])),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "near_duplicates": near_duplicates([texts[row] for row in chosen]),
        "kinds": _agreement(scores),
        "foreign_titles": foreign / len(chosen),
        "by_activity": {
            name: {"flagged": float(flagged[third].mean()), "kinds": _agreement(scores[third])}
            for name, third in zip(names, thirds, strict=True)
            if len(third)
        },
    }


def _names_foreign(text: str, own: set[str], titles: set[str]) -> bool:
    """Whether a case-folded text names a title that is not the user's; own titles are taken out first: others can lie inside them."""
    for title in sorted(own, key=len, reverse=True):
        text = text.replace(title, " ")
    return any(title in text and title not in own for title in titles)


def _agreement(scores: np.ndarray) -> dict[str, float] | None:
    """Returns mean precision, recall and their harmonic mean over rows without NaN; None where there are none."""
    scores = scores[~np.isnan(scores).any(axis=1)]
    if not len(scores):
        return None
    precision, recall = (float(value) for value in scores.mean(axis=0))
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0}
