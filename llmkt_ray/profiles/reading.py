"""Stored profiles for a reader: one user's rows with what the checks say about the texts."""

from collections.abc import Iterable, Iterator
from typing import Any

from llmkt_ray.data.raw import shown
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.quality import flags
from llmkt_ray.profiles.table import Profiles


def rows_of(sets: Iterable[tuple[str, Profiles]], user_id: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Yields (label, the user's row, the names of its flags) of every set of profiles that has the user.

    Args:
        sets: label and profiles.
        user_id: the raw id.

    Raises:
        ProfileError: there is no set, or none has the user.
    """
    known: list[str] = []
    found = False
    for label, profiles in sets:
        rows = profiles.table.to_pylist()
        own = next((row for row in rows if row["user_id"] == user_id), None)
        known = known or [row["user_id"] for row in rows[:5]]
        if own is None:
            continue
        found = True
        with_text = [row for row in rows if row["profile"] is not None]
        place = next((at for at, row in enumerate(with_text) if row["user_id"] == user_id), None)
        marks = flags(with_text) if place is not None else {}
        yield label, own, [name for name, flagged in marks.items() if flagged[place]]
    if not found:
        have = f"users are for example {shown(known, 5)}" if known else "none has been made yet; run the study first"
        raise ProfileError(f"no profiles of this study are of a user {user_id!r}: {have}")
