"""From a cell to its users: who gained and who lost, what was written about them, and which items moved."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import LlmktError
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.report.cells import Runs, paired_tables
from llmkt_ray.report.findings import Finding, profiles_of
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import Section, Table
from llmkt_ray.report.text import plain, signed
from llmkt_ray.results.ledger import Ledger

MOST_CELLS, MOST_USERS = 3, 4
MOST_LETTERS, MOST_ITEMS = 700, 5
TITLES = ("title", "movie_title", "name", "item_name", "product_title")
"""Columns of an item table that may hold what people call an item, the first that exists."""


@dataclass(frozen=True)
class _Context:
    """What is known of the users of one split: tokens, titles of items, texts."""

    data: PreparedData
    titles: np.ndarray
    texts: Mapping[str, str]


def users_section(results: Results, findings: tuple[Finding, ...]) -> Section | None:
    """Returns the users whose test value changed most from alpha0 to treated, with profile and moved items.

    None where the study's artifacts are not beside its folder, as after copying the folder alone.
    """
    store = ArtifactStore(results.folder.parent / "artifacts")
    tables = []
    shown = sorted((f for f in findings if "alpha0" in f.contrasts), key=lambda f: -abs(f.contrasts["alpha0"].difference.estimate))
    for finding in shown[:MOST_CELLS]:
        table = _table(results, finding, store)
        if table is not None:
            tables.append(table)
    if not tables:
        return None
    return Section(
        key="users",
        title="Users who gained and users who lost",
        short="Users",
        lead=(
            f"For the {'cell' if len(tables) == 1 else f'{len(tables)} cells'} with the largest effect: the users whose test "
            f"{results.metric} changed "
            "most from alpha0 to treated (mean over shared seeds), what was written about them, and the items that entered or left their "
            "list in the first seed. The extremes of many users are mostly chance: read them as examples, not as evidence."
        ),
        tables=tuple(tables),
    )


def _table(results: Results, finding: Finding, store: ArtifactStore) -> Table | None:
    cell = finding.cell
    treated, alpha0 = cell.treated[results.claim_alpha], cell.controls["alpha0"]
    pairs = paired_tables(results, treated, alpha0, results.metric)
    shared = sorted(treated.rows.keys() & alpha0.rows.keys())
    if not pairs or not shared:
        return None
    context = _context(results, finding, store, treated, shared[0])
    if context is None:
        return None
    one, other = pairs[0]
    change = (one - other).mean(axis=0, dtype=np.float64)
    keys = [str(results.keys[runs.rows[shared[0]]]) for runs in (treated, alpha0)]
    users = results.user_values(results.metric)[keys[0]][0]
    ledger = Ledger(results.folder)
    lists = [ledger.recommended(key) for key in keys]
    order = np.argsort(change, kind="stable")
    rows = []
    for place in [*order[::-1][:MOST_USERS], *order[:MOST_USERS]]:
        token = str(context.data.user_tokens[users[place]])
        now, before = (one_list[place] if len(one_list) > place else np.empty(0, dtype=np.int32) for one_list in lists)
        rows.append(
            (
                token,
                signed(float(change[place])),
                plain(float(one[:, place].mean())),
                _items(context, now, before),
                _items(context, before, now),
                _cut(context.texts.get(token, "no profile")),
            )
        )
    columns = ("user", f"change in {results.metric}", "treated", "entered the list", "left the list", "profile")
    return Table(cell.label, columns, (False, True, True, False, False, False), tuple(rows))


def _context(results: Results, finding: Finding, store: ArtifactStore, treated: Runs, at: tuple[int, int]) -> _Context | None:
    split = str(results.trials["split_key"].iloc[treated.rows[at]])
    try:
        data = PreparedData.load(store, split)
        name = next((name for name in TITLES if name in data.items.column_names), None)
        titles = np.asarray(data.items.column(name).to_pylist() if name else data.item_tokens, dtype=object)
        texts: dict[str, str] = {}
        for entry in profiles_of(results, finding.cell):
            if entry.get("split_key") in (None, split):
                texts.update(zip(*Profiles.load(store, str(entry["key"])).texts(), strict=True))
    except (LlmktError, OSError, KeyError):
        return None  # the page is about the rows; where the texts are elsewhere it is made without them
    return _Context(data, titles, texts)


def _items(context: _Context, these: np.ndarray, without: np.ndarray) -> str:
    moved = [str(context.titles[item]) for item in these if item not in set(without.tolist())]
    more = f" and {len(moved) - MOST_ITEMS} more" if len(moved) > MOST_ITEMS else ""
    return "; ".join(moved[:MOST_ITEMS]) + more if moved else "\u2013"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + "\u2026"
