"""From a trial to its users: who moved most against the trial's twin without transfer, which items moved, what was written about them.

For the page's list of trials. The largest changes of many users are mostly chance: the page says so beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmkt_ray.report.context import Context, Lists, Split
from llmkt_ray.report.findings import Finding

MOST_TRIALS = 2000
"""Trials whose users are shown: all treated ones of a small study, of a larger one the first seed of every cell and alpha."""
MOST_USERS, MOST_ITEMS = 4, 5
"""Users at each end, and items that entered or left, of one trial."""
MOST_LETTERS, ALL_LETTERS = 1200, 10_000_000
"""Letters of one text at the most, and of all texts of a page."""


@dataclass
class Drill:
    """What the page's script reads; small numbers in place of repeated texts.

    Attributes:
        moves: row of the trials table to its users, each [user, text, after, before, entered, left, kept]: user and text are places
            in the lists below (text -1: none), after and before the user's metric in 1/10,000, entered and left lists of 2 * title + (1
            where the user liked the item in test), kept lists of [the same, rank before, rank after] of liked items in both lists.
        users: [raw id, train rows] of each user named.
        texts: profile texts.
        titles: titles of the items named.
    """

    moves: dict[int, list[list[Any]]] = field(default_factory=dict)
    users: list[list[Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    _places: dict[tuple[str, Any], int] = field(default_factory=dict)

    def place(self, kind: str, key: Any, values: list[Any], value: Any) -> int:
        """Returns where a value stands in its list, adding it if it is new."""
        at = (kind, key)
        if at not in self._places:
            self._places[at] = len(values)
            values.append(value)
        return self._places[at]

    def document(self) -> dict[str, Any]:
        """Returns it as JSON values, all texts cut so that the page stays small."""
        letters = min(MOST_LETTERS, ALL_LETTERS // max(len(self.texts), 1))
        texts = [text if len(text) <= letters else text[:letters] + "\u2026" for text in self.texts]
        return {"moves": self.moves, "users": self.users, "texts": texts, "titles": self.titles}


def drill(context: Context, findings: Sequence[Finding]) -> Drill:
    """Returns the users who moved most in the treated trials; empty where nothing was ranked or the splits are not to be had."""
    made, pairs = Drill(), _pairs(findings)
    results = context.results
    values = results.user_values(results.metric) if pairs else {}
    wanted: dict[str, tuple[Finding, int, int, Split]] = {}
    for finding, row, twin in pairs:
        keys = str(results.keys[row]), str(results.keys[twin])
        split = context.split(str(results.trials["split_key"].iloc[row]))
        if split is not None and all(key in values for key in keys) and np.array_equal(values[keys[0]][0], values[keys[1]][0]):
            wanted[keys[0]] = (finding, row, twin, split)
    twins = {str(results.keys[twin]) for _, _, twin, _ in wanted.values()}
    before = dict(context.lists(twins))
    for key, (users, lists) in context.lists(wanted):
        finding, row, twin, split = wanted[key]
        other = str(results.keys[twin])
        if (
            other in before
            and np.array_equal(users, before[other][0])
            and np.array_equal(users, values[key][0])
            and int(users.max()) < split.data.n_users
        ):
            after, without = values[key][1], values[other][1]
            made.moves[row] = _moves(context, made, finding, split, (users, lists), before[other], after, without)
    return made


def _pairs(findings: Sequence[Finding]) -> list[tuple[Finding, int, int]]:
    """Returns (finding, row of a treated trial, row of its alpha0 twin), of every seed or, if they are too many, of the first."""
    pairs = []
    for finding in findings:
        alpha0 = finding.cell.controls.get("alpha0")
        for treated in finding.cell.treated.values() if alpha0 is not None else ():
            shared = sorted(treated.rows.keys() & alpha0.rows.keys())  # type: ignore[union-attr]
            pairs += [(place, finding, treated.rows[at], alpha0.rows[at]) for place, at in enumerate(shared)]  # type: ignore[union-attr]
    if len(pairs) > MOST_TRIALS:
        pairs = [pair for pair in pairs if pair[0] == 0][:MOST_TRIALS]
    return [pair[1:] for pair in pairs]


def _moves(
    context: Context, made: Drill, finding: Finding, split: Split, now: Lists, before: Lists, after: np.ndarray, without: np.ndarray
) -> list[list[Any]]:
    change = context.results.sign() * (after.astype(np.float64) - without)
    order = np.argsort(np.where(np.isfinite(change), change, 0), kind="stable")
    places = [p for p in (*order[::-1][:MOST_USERS], *order[:MOST_USERS][::-1]) if change[p] != 0 and np.isfinite(change[p])]
    texts = context.texts(finding.cell, split.data.key)
    made_moves = []
    for place in dict.fromkeys(places):
        user = int(now[0][place])
        token = str(split.data.user_tokens[user])
        known = made.place("user", (split.data.key, user), made.users, [token, int(split.train_rows[user])])
        text = texts.get(token)
        at = -1 if text is None else made.place("text", text, made.texts, text)
        new, old = now[1][place], before[1][place]
        entered, left = (_items(made, split, user, these, others) for these, others in ((new, old), (old, new)))
        kept = _kept(made, split, user, new, old)
        made_moves.append([known, at, round(float(after[place]) * 1e4), round(float(without[place]) * 1e4), entered, left, kept])
    return made_moves


def _kept(made: Drill, split: Split, user: int, new: np.ndarray, old: np.ndarray) -> list[list[int]]:
    """Returns the items that the user liked in test and that are in both lists, with their ranks (from 1) before and after."""
    ranks = {int(item): rank for rank, item in enumerate(old.tolist(), 1)}
    liked = split.liked_in_test(user)
    return [
        [2 * made.place("title", (split.data.key, item), made.titles, str(split.titles[item])) + 1, ranks[item], rank]
        for rank, item in enumerate(new.tolist(), 1)
        if item in liked and item in ranks
    ][:MOST_ITEMS]


def _items(made: Drill, split: Split, user: int, these: np.ndarray, others: np.ndarray) -> list[int]:
    moved = these[~np.isin(these, others)][:MOST_ITEMS].tolist()
    liked = split.liked_in_test(user)
    return [2 * made.place("title", (split.data.key, i), made.titles, str(split.titles[i])) + (i in liked) for i in moved]
