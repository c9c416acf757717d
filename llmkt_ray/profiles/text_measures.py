"""Measures of single profiles, to be set beside what each user gains: one value a user.

The texts are untrusted: they are counted and compared, never interpreted.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmkt_ray.data.history import Entry, Histories, kinds_of
from llmkt_ray.profiles.kinds import KindIndex

_WORD = re.compile(r"[\w']+")
_TOP_KINDS = 5


@dataclass(frozen=True)
class TextMeasure:
    """One measure.

    Attributes:
        name, meaning: what it is, in words.
        values: float64 `(n_users,)`, NaN for users without a profile or without what it is measured against.
    """

    name: str
    meaning: str
    values: np.ndarray


def text_measures(texts: Sequence[str | None], past: Histories, kinds: Sequence[str]) -> list[TextMeasure]:
    """Returns the measures of profiles, those that the dataset holds data for.

    Args:
        texts: one for each user in index order, None where there is none.
        past: the users' train rows.
        kinds: names of all kinds (genres) of the catalogue; fewer than 2: agreement is not measured.
    """
    has = [user for user, text in enumerate(texts) if text]
    words = np.full(len(texts), np.nan)
    words[has] = [len(_WORD.findall(str(texts[user]))) for user in has]
    measures = [TextMeasure("length", "words", words)]
    if len(has) >= 2:
        own = np.full(len(texts), np.nan)
        own[has] = distinctiveness([str(texts[user]) for user in has])
        measures.append(TextMeasure("distinctiveness", "1 - cosine with the mean TF-IDF vector of all profiles, 0 to 1", own))
    if len(kinds) > 1:
        known = KindIndex(kinds)
        found = np.full((len(texts), 2), np.nan)
        for user in has:
            agreement = kind_agreement(str(texts[user]), past.of(user), known)
            found[user] = agreement or (np.nan, np.nan)
        measures.append(TextMeasure("genre precision", "share of the genres named that are in the user's train rows, 0 to 1", found[:, 0]))
        measures.append(
            TextMeasure("genre recall", "share of the user's five most frequent train genres that are named, 0 to 1", found[:, 1])
        )
    return measures


def kind_agreement(text: str, history: Sequence[Entry], known: KindIndex) -> tuple[float, float] | None:
    """Returns (precision, recall), each in [0, 1], of the kinds that a text names against the user's kinds.

    Precision: share of the named kinds that are in the history at all. Recall: share of the five most frequent kinds of the
    history that are named. None where the history has no kinds.

    Args:
        text: the profile.
        history: the user's train rows.
        known: the kinds of the whole catalogue.
    """
    counts = Counter(kind for entry in history for kind in kinds_of(entry.item))
    if not counts:
        return None
    named = known.named(text)
    top = [kind for kind, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:_TOP_KINDS]]
    precision = len(named & set(counts)) / len(named) if named else 0.0
    return precision, len(named & set(top)) / len(top)


def distinctiveness(texts: Sequence[str]) -> np.ndarray:
    """Returns how far each text is from the common one, `(n,)` in [0, 1]: 1 - cosine with the mean TF-IDF vector."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        vectors = TfidfVectorizer(token_pattern=_WORD.pattern).fit_transform(texts)
    except ValueError:  # no text has a word
        return np.full(len(texts), np.nan)
    mean = np.asarray(vectors.mean(axis=0)).ravel()
    size = float(np.linalg.norm(mean))
    return np.asarray(1 - (vectors @ mean) / size) if size else np.full(len(texts), np.nan)
