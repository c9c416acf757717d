"""Forgetting one user: the text of every set of profiles, and what was derived from it, taken out of the artifacts.

Artifacts keep their keys, so nothing is asked or computed anew for the user. A profile's row stays, with the error "forgotten"; the row
of the embeddings goes; the row of the targets (and of what KAR reads) becomes zero, as for a user who never had a profile. Other rows
stay as they are: a reducer was fitted with the user's vector among the others, and models that were trained with it are not trained again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from llmkt_ray.artifacts import MANIFEST, ArtifactStore, Manifest
from llmkt_ray.embeddings.knowledge import KIND as KNOWLEDGE
from llmkt_ray.embeddings.targets import KIND as TARGETS
from llmkt_ray.embeddings.vectors import KIND as EMBEDDINGS
from llmkt_ray.errors import ArtifactError
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.table import KIND as PROFILES
from llmkt_ray.profiles.table import ProfileRow, as_table

FORGOTTEN = "forgotten: removed on request"


@dataclass(frozen=True)
class Forgotten:
    """What was removed, as numbers of rows.

    Attributes:
        texts: profiles; those that had been removed before are not counted.
        parts: rows of part files of profiles that are not finished.
        embeddings: vectors of the texts.
        targets: rows of targets, and of the vectors that KAR reads, that were made of those.
        pages: reports that were deleted, because they show texts; `forget` itself deletes none.
        pages_left: why others could not be.
    """

    texts: int
    parts: int
    embeddings: int
    targets: int
    pages: tuple[str, ...] = ()
    pages_left: tuple[str, ...] = ()


def forget(store: ArtifactStore, profiles_keys: Iterable[str], user_id: str) -> Forgotten:
    """Removes one user from these profiles and from every artifact of the store that was made of them.

    Args:
        store: where the artifacts are.
        profiles_keys: of the profiles; those that are not there are passed over.
        user_id: the raw id.

    Raises:
        ArtifactError: profiles are damaged: which text is the user's cannot be told.
        StorageError: something cannot be written; what was removed until then stays removed, and the same call goes on.
    """
    keys = set(profiles_keys)
    texts_of = [manifest for key in sorted(keys) if (manifest := _texts(store, key))]
    vectors_of = [manifest for manifest in _whole(store, EMBEDDINGS) if manifest.inputs.get("profiles") in keys]
    made_of_texts = {manifest.key for manifest in vectors_of}
    # What is derived goes first: an interruption leaves the text, by which a second call finds the rest.
    targets = sum(
        remove(store, manifest, user_id)
        for kind, remove in ((TARGETS, _from_targets), (KNOWLEDGE, _from_knowledge))
        for manifest in _whole(store, kind)
        if manifest.inputs.get("embeddings") in made_of_texts
    )
    embeddings = sum(_from_embeddings(store, manifest, user_id) for manifest in vectors_of)
    parts = sum(Parts(store, key).forget(user_id, FORGOTTEN) for key in keys)
    texts = sum(_from_profiles(store, manifest, user_id) for manifest in texts_of)
    return Forgotten(texts, parts, embeddings, targets)


def without_text(row: ProfileRow) -> ProfileRow:
    """Returns a row without its text and without what can be compared with a text or a prompt."""
    return replace(row, profile=None, prompt_hash=None, finish_reason=None, error=FORGOTTEN)


def _whole(store: ArtifactStore, kind: str) -> Iterator[Manifest]:
    """Yields the manifests of what is derived, of one kind; what is damaged counts for nothing, but may hold the user: it is deleted."""
    for key in store.keys(kind):
        manifest = store.find(kind, key)
        if manifest is not None:
            store.tidy(manifest)
            yield manifest
        else:
            store.files.delete(f"{kind}/{key}")


def _texts(store: ArtifactStore, key: str) -> Manifest | None:
    """Returns the manifest of profiles, None where there are none."""
    manifest = store.find(PROFILES, key)
    if manifest is not None:
        store.tidy(manifest)
    elif store.files.exists(f"{PROFILES}/{key}/{MANIFEST}"):
        raise ArtifactError(
            f"{store.root}/{PROFILES}/{key} is damaged: which text is the user's cannot be told; "
            "delete that folder, run the study again to write the texts anew, then forget the user"
        )
    return manifest


def _from_profiles(store: ArtifactStore, manifest: Manifest, user_id: str) -> int:
    rows = [ProfileRow(**values) for values in store.table(PROFILES, manifest.key, "profiles").to_pylist()]
    changed = [without_text(row) if row.user_id == user_id and row.error != FORGOTTEN else row for row in rows]
    if changed == rows:
        return 0
    with_text = sum(row.profile is not None for row in changed)
    notes = {"with_profile": with_text, "coverage": with_text / len(rows)}
    _save(store, manifest, {"profiles": as_table(changed)}, {}, notes)
    return sum(before.profile is not None for before, after in zip(rows, changed, strict=True) if before != after)


def _from_embeddings(store: ArtifactStore, manifest: Manifest, user_id: str) -> int:
    users, row = _users(store, manifest, user_id)
    if not row.any():
        return 0
    arrays = {name: array[~row] for name, array in _arrays(store, manifest).items()}
    _save(store, manifest, {"users": users.filter(pa.array(~row))}, arrays, {"texts": int((~row).sum())})
    return int(row.sum())


def _from_targets(store: ArtifactStore, manifest: Manifest, user_id: str) -> int:
    (users, row), arrays = _users(store, manifest, user_id), _arrays(store, manifest)
    row &= arrays["present"]
    if not row.any():
        return 0
    arrays["matrix"][row] = 0
    arrays["present"][row] = False
    _save(store, manifest, {"users": users}, arrays, {"present": int(arrays["present"].sum())})
    return int(row.sum())


def _from_knowledge(store: ArtifactStore, manifest: Manifest, user_id: str) -> int:
    (users, row), arrays = _users(store, manifest, user_id), _arrays(store, manifest)
    if not arrays["users"][row].any():
        return 0
    arrays["users"][row] = 0
    tables = {"users": users, "items": store.table(KNOWLEDGE, manifest.key, "items")}
    _save(store, manifest, tables, arrays, {"users_with_profile": int(manifest.notes["users_with_profile"]) - 1})
    return int(row.sum())


def _users(store: ArtifactStore, manifest: Manifest, user_id: str) -> tuple[pa.Table, np.ndarray]:
    """Returns an artifact's table of users, and which of its rows are this user's, bool `(n,)`."""
    users = store.table(manifest.kind, manifest.key, "users")
    return users, np.array([str(user) == user_id for user in users.column("user_id").to_pylist()], np.bool_)


def _arrays(store: ArtifactStore, manifest: Manifest) -> dict[str, np.ndarray]:
    """Returns copies of an artifact's arrays, to be changed."""
    return {name: np.array(array) for name, array in store.arrays(manifest.kind, manifest.key).items()}


def _save(
    store: ArtifactStore, manifest: Manifest, tables: Mapping[str, pa.Table], arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]
) -> None:
    # How many, and not who: a list of those who asked to be forgotten would remember them.
    forgotten = int(manifest.notes.get("forgotten_users", 0)) + 1
    store.save(
        manifest.kind,
        manifest.key,
        inputs=manifest.inputs,
        arrays=arrays,
        tables=tables,
        versions=manifest.versions,
        notes={**manifest.notes, **notes, "forgotten_users": forgotten},
        wall_s=manifest.wall_s,
        rewrite=True,
    )
    for digest in {file["sha256"] for file in manifest.files.values()}:
        store.forget_copy(digest)
