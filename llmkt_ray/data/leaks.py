"""The leak certificate: whether anything that a profile was written from is held out (METHOD, section 3)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError

DECLARED_COLUMN = "column"
"""What a manifest may name as its split when the profiles were written from the rows that the dataset's own column marks as train."""


@dataclass(frozen=True)
class Certificate:
    """What is known about leaks from held-out rows into profiles.

    Attributes:
        status: "verified": every pair that entered a prompt was looked up in validation and test, and none is there; "declared":
            the manifest of a file names this split; "unknown": nothing is known; "leaked": held-out pairs were found.
        pairs: distinct pairs of user and item that were looked up.
        leaks: how many of them are in validation or test.
        foreign: how many are in no part of the split at all: not a leak, but not this split's history either.
        reason: one sentence for the report.
    """

    status: Literal["verified", "declared", "unknown", "leaked"]
    pairs: int
    leaks: int
    foreign: int
    reason: str

    @property
    def allows_verdict(self) -> bool:
        """Whether a study with these profiles may reach a verdict."""
        return self.status in ("verified", "declared")


UNKNOWN = Certificate(
    "unknown", 0, 0, 0, "nothing says which interactions these profiles were written from; no verdict is reached with them"
)
"""The certificate of profiles without a manifest."""


def verify(data: PreparedData, users: np.ndarray, items: np.ndarray) -> Certificate:
    """Returns the certificate of profiles whose every prompt is known: an anti-join with validation and test.

    Args:
        data: the split.
        users: int `(n,)`, index of the user of every pair that entered a prompt.
        items: int `(n,)`, index of its item; repeated pairs count once.

    Raises:
        ProfileError: the arrays differ in length or hold indices outside the split.
    """
    if users.shape != items.shape:
        raise ProfileError(f"a leak check needs one item a user, but got {len(users)} users and {len(items)} items")
    if len(users) and (min(users.min(), items.min()) < 0 or users.max() >= data.n_users or items.max() >= data.n_items):
        raise ProfileError(f"a leak check got indices outside the split's {data.n_users} users and {data.n_items} items")
    prompted = np.unique(users.astype(np.int64) * data.n_items + items)
    held_out = np.isin(
        prompted, np.concatenate([_pairs(data.valid.user, data.valid.item, data), _pairs(data.test.user, data.test.item, data)])
    )
    leaks = int(held_out.sum())
    foreign = int((~held_out & ~np.isin(prompted, _pairs(data.train_full.user, data.train_full.item, data))).sum())
    if leaks:
        reason = f"{leaks:,} of {len(prompted):,} pairs of user and item in the prompts are held out for validation or test"
        return Certificate("leaked", len(prompted), leaks, foreign, reason)
    return Certificate(
        "verified", len(prompted), 0, foreign, f"none of {len(prompted):,} pairs of user and item in the prompts is held out"
    )


def declare(data: PreparedData, split: str | None) -> Certificate:
    """Returns the certificate of profiles from a file, by the split that its manifest names.

    Args:
        data: the split of the study.
        split: the manifest's entry: the split's key, the `train_digest` of its notes (equal for every seed and for every choice of
            validation that leaves the train rows as they are), or "column" for the dataset's own column; None where it names none.

    Raises:
        ProfileError: the manifest names another split.
    """
    if split is None:
        return UNKNOWN
    rule = data.notes["split"]
    by_column = isinstance(rule, dict) and rule["kind"] == "column"
    if split in (data.key, data.notes["train_digest"]) or (split == DECLARED_COLUMN and by_column):
        return Certificate("declared", 0, 0, 0, f"the manifest names this split ({split}) as what the profiles were written from")
    allowed = f"its key {data.key} or its train_digest {data.notes['train_digest']}" + (f" or {DECLARED_COLUMN!r}" if by_column else "")
    raise ProfileError(
        f"the profiles are declared for split {split!r}, but dataset {data.name!r} uses another: {allowed}; "
        "write profiles from this split, or use the split that they were written from"
    )


def _pairs(user: np.ndarray, item: np.ndarray, data: PreparedData) -> np.ndarray:
    return np.asarray(user.astype(np.int64) * data.n_items + item)
