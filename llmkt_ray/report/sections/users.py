"""From a cell to its users: who gained and who lost, what was written about them, and which items moved."""

import numpy as np

from llmkt_ray.report.cells import paired_tables
from llmkt_ray.report.context import Context
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.sections.base import Section, Table
from llmkt_ray.report.text import plain, signed

MOST_CELLS, MOST_USERS = 3, 4
MOST_LETTERS, MOST_ITEMS = 280, 5


def users_section(context: Context, findings: tuple[Finding, ...]) -> Section | None:
    """Returns the users whose test value changed most from alpha0 to treated, with profile and moved items.

    None where the study's artifacts are not beside its folder, as after copying the folder alone.
    """
    results = context.results
    tables = []
    shown = sorted((f for f in findings if "alpha0" in f.contrasts), key=lambda f: -abs(f.contrasts["alpha0"].difference.estimate))
    for finding in shown[:MOST_CELLS]:
        table = _table(context, finding)
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
            "list in the first seed. Any treated trial in the list below leads to its own. The extremes of many users are mostly chance: "
            "read them as examples, not as evidence."
        ),
        tables=tuple(tables),
    )


def _table(context: Context, finding: Finding) -> Table | None:
    results, cell = context.results, finding.cell
    treated, alpha0 = cell.treated[cell.claim_alpha], cell.controls["alpha0"]
    pairs = paired_tables(results, treated, alpha0, results.metric)
    if not pairs:
        return None
    repetition, (seeds, users, one, other) = next(iter(pairs.items()))
    first = (repetition, seeds[0])
    split = context.split_of(treated, repetition)
    if split is None:
        return None
    texts = context.texts(cell, split.data.key)
    change = results.sign() * (one - other).mean(axis=0, dtype=np.float64)  # positive: better
    keys = [str(results.keys[runs.rows[first]]) for runs in (treated, alpha0)]
    found = dict(context.lists(keys))
    lists = [dict(zip(found[key][0].tolist(), found[key][1], strict=True)) if key in found else {} for key in keys]
    order = np.argsort(change, kind="stable")
    rows = []
    for place in [*order[::-1][:MOST_USERS], *order[:MOST_USERS]]:
        token = str(split.data.user_tokens[users[place]])
        now, before = (of_user.get(int(users[place]), np.empty(0, dtype=np.int32)) for of_user in lists)
        rows.append(
            (
                token,
                signed(float(change[place])),
                plain(float(one[:, place].mean())),
                _items(split.titles, now, before),
                _items(split.titles, before, now),
                _cut(texts.get(token, "no profile")),
            )
        )
    columns = ("user", f"gain in {results.metric}", "treated", "entered the list", "left the list", "profile")
    return Table(cell.label, columns, (False, True, True, False, False, False), tuple(rows))


def _items(titles: np.ndarray, these: np.ndarray, without: np.ndarray) -> str:
    moved = [str(titles[item]) for item in these if item not in set(without.tolist())]
    more = f" and {len(moved) - MOST_ITEMS} more" if len(moved) > MOST_ITEMS else ""
    return "; ".join(moved[:MOST_ITEMS]) + more if moved else "\u2013"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + "\u2026"
