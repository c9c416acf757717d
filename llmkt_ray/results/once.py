"""One number for one seed: two rows that claim the same place in a table are told, not averaged, and none of them wins."""

import json

import pandas as pd

from llmkt_ray.errors import StorageError
from llmkt_ray.seeds import canonical_json


def freezing(spec: str) -> str | None:
    """Returns what a trial's schedule freezes, as JSON of phase to patterns, from its spec; None where that is nothing."""
    frozen = json.loads(spec)["schedule"]["freeze"]
    return canonical_json(frozen) if frozen else None


def refuse_two_rows(one: pd.Series, other: pd.Series) -> None:
    """Returns if two rows of one arm, cell, split and seed are one trial but for the rungs of a search, which change no finished number.

    Raises:
        StorageError: they are trials of different inputs or settings under the same labels.
    """
    before, after = (json.loads(row["spec"]) for row in (one, other))
    differs = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name) and name != "rungs")
    if differs:
        raise StorageError(
            f"trials {one['trial_key']} and {other['trial_key']} are both {one['arm']!r} of {one['model']} on {one['dataset']} at split "
            f"{other['split_repetition']:g}, seed {one['seed_index']:g}, under the same labels, but differ in {', '.join(differs)}: "
            "a file of profiles or data, or the program, was replaced between two runs in one folder; give the study another `name` and "
            "run it again, or remove the rows (ledger/trials/KEY.parquet) that are not wanted"
        )
