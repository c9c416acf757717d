"""Targets: the reduced, standardised profile embeddings that a tapped layer learns to reconstruct."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.raw import shown
from llmkt_ray.embeddings.fidelity import fidelity
from llmkt_ray.embeddings.geometry import geometry
from llmkt_ray.embeddings.reducers import FLAT, REDUCERS, reduce
from llmkt_ray.embeddings.vectors import KIND as EMBEDDINGS
from llmkt_ray.embeddings.vectors import Embeddings, check_finite, text_hash
from llmkt_ray.errors import EmbeddingError
from llmkt_ray.profiles.audit import user_thirds
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.seeds import content_key, derive_seed
from llmkt_ray.study import ReductionConfig

KIND = "targets"
TARGETS_VERSION = 2
"""Part of every key; rises when a change of ours alters targets."""


@dataclass(frozen=True)
class Targets:
    """What the tapped layer learns to reconstruct (artifact kind "targets").

    Attributes:
        key: the artifact's key.
        matrix: float32 `(n_users, d)`, in the index order of `PreparedData.user_tokens`; zeros where absent.
        present: bool `(n_users,)`; False: this user has no profile and stays out of the loss.
        user_tokens: raw user ids `(n_users,)`, compared with the split's before use.
        notes: fidelity of the reduction and counts, JSON values.
    """

    key: str
    matrix: np.ndarray
    present: np.ndarray
    user_tokens: np.ndarray
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dims(self) -> int:
        """Width d."""
        return int(self.matrix.shape[1])

    @staticmethod
    def load(store: ArtifactStore, key: str) -> "Targets":
        """Returns stored targets, memory-mapped.

        Raises:
            ArtifactError: the artifact is missing or damaged.
        """
        arrays = store.arrays(KIND, key)
        users = store.table(KIND, key, "users").column("user_id").to_pylist()
        return Targets(key, arrays["matrix"], arrays["present"], np.asarray(users, dtype=np.str_), store.manifest(KIND, key).notes)


def check_users(targets: Targets, data: PreparedData) -> None:
    """Checks that row u of the targets is user u of the split (METHOD.md, trap 5).

    Raises:
        EmbeddingError: the ids differ, or stand in another order.
    """
    ours, theirs = data.user_tokens, targets.user_tokens
    if len(ours) == len(theirs) and bool((ours == theirs).all()):
        return
    same = len(ours) == len(theirs) and sorted(ours.tolist()) == sorted(theirs.tolist())
    what = "the same users in another order" if same else f"{len(theirs):,} users, others than the {len(ours):,} of the split"
    raise EmbeddingError(
        f"targets {targets.key} hold {what}, so that a user would learn somebody else's profile; make them from split {data.key} anew"
    )


def targets_key(embeddings_key: str, reduction: ReductionConfig, dims: int, study_seed: int, *, draw: int | None = None) -> str:
    """Returns the key of the targets: what determines them, the seed and the version of the reducer included."""
    return content_key(_inputs(embeddings_key, reduction, dims, study_seed, draw))


def _inputs(embeddings_key: str, reduction: ReductionConfig, dims: int, study_seed: int, draw: int | None) -> dict[str, Any]:
    settings: dict[str, Any] = reduction.model_dump(mode="json", exclude={"dims", "n_neighbors", "min_dist"})
    if reduction.method == "umap":
        settings |= {"n_neighbors": reduction.n_neighbors, "min_dist": reduction.min_dist}
    reducer = REDUCERS[reduction.method]
    if reducer.revision > 1:
        settings["revision"] = reducer.revision
    package = reducer.package
    return {
        "version": TARGETS_VERSION,
        "package": None if package is None else f"{package} {version(package)}",
        "embeddings": embeddings_key,
        "reduction": settings,
        "dims": dims,
        "study_seed": study_seed,
        "draw": draw,
    }


def make_targets(
    *,
    embeddings_key: str,
    data: PreparedData,
    reduction: ReductionConfig,
    dims: int,
    study_seed: int,
    store: ArtifactStore,
    draw: int | None = None,
) -> Targets:
    """Returns the targets of a split, from the store where they are there already.

    The reducer is fitted once, on the users of the train split that have a profile (METHOD.md, trap 2); the result is standardised per
    dimension on them (trap 3); rows are joined by token, never by position (trap 5); users without a profile are masked out.

    Args:
        embeddings_key: of embeddings of profiles of this split.
        data: the split.
        reduction: the reducer; its own `dims` is not read.
        dims: the resolved width d.
        study_seed: the study's seed, from which the reducer's is derived.
        store: where the embeddings are and the targets go.
        draw: index of the fit, where the reducer is fitted several times (`reduction.refit`); it gives another seed.

    Raises:
        EmbeddingError: the embeddings are of other users or hold NaN, texts and vectors do not belong together, or d is too large.
        ArtifactError: there are no such embeddings.
        StorageError: the result cannot be stored.
    """
    key = targets_key(embeddings_key, reduction, dims, study_seed, draw=draw)
    if store.find(KIND, key) is not None:
        targets = Targets.load(store, key)
        check_users(targets, data)
        return targets
    started = time.monotonic()
    embeddings = Embeddings.load(store, embeddings_key)
    _check_texts(embeddings, store)
    check_finite(embeddings.vectors, embeddings.user_ids.tolist(), "of the stored embeddings")
    index = join_users(embeddings.user_ids, data.user_tokens)
    trained = np.bincount(data.train_full.user, minlength=data.n_users) > 0
    # The published code fits on all users (trap 2); a user without train rows says nothing about those that are trained on.
    fitted = np.ones(len(index), np.bool_) if reduction.refit else trained[index]
    if int(fitted.sum()) < 3:
        raise EmbeddingError(f"{int(fitted.sum())} users of {data.name!r} have a profile and train rows; a reduction needs at least 3")
    vectors = np.asarray(embeddings.vectors, dtype=np.float64)[fitted]
    seed = derive_seed(study_seed, KIND, embeddings_key, reduction.method, dims, *(() if draw is None else (draw,)))
    reduced = reduce(reduction, vectors, dims, seed)
    standard, constant = standardize(reduced) if reduction.standardize else (reduced, 0)
    with threadpool_limits(1):
        # Of what is learned: standardising changes which users are near each other (that of a PCA whitens it).
        notes = fidelity(vectors, standard, seed)
        groups = {name: third[index[fitted]] for name, third in user_thirds(data).items()}
        notes |= {"geometry": geometry(vectors, standard, groups, seed)}
    matrix = np.zeros((data.n_users, dims), np.float32)
    present = np.zeros(data.n_users, np.bool_)
    matrix[index[fitted]] = standard
    present[index[fitted]] = True
    notes |= {
        "users": data.n_users,
        "present": int(present.sum()),
        "without_profile": data.n_users - len(index),
        "without_train_rows": int((~fitted).sum()),
        "constant_dims": constant,
        "mean_before": float(reduced.mean()),
        "sd_before": float(reduced.std(axis=0).mean()),
    }
    store.save(
        KIND,
        key,
        inputs=_inputs(embeddings_key, reduction, dims, study_seed, draw),
        arrays={"matrix": matrix, "present": present},
        tables={"users": pa.table({"user_id": data.user_tokens.tolist()})},
        notes=notes,
        versions={name: version(name) for name in ("umap-learn", "scikit-learn", "numpy")},
        wall_s=time.monotonic() - started,
    )
    return Targets.load(store, key)


def standardize(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns `(n, d)` with mean 0 and standard deviation 1 per dimension, and how many dimensions are constant (these become 0)."""
    spread = matrix.std(axis=0)
    # Some encoders have dead dimensions that vary by rounding alone (three of MiniLM's 384): scaling these up would make noise a target.
    flat = spread <= FLAT * float(spread.max())
    return np.where(flat, 0.0, (matrix - matrix.mean(axis=0)) / np.where(flat, 1.0, spread)), int(flat.sum())


def join_users(user_ids: np.ndarray, user_tokens: np.ndarray) -> np.ndarray:
    """Returns the index in `user_tokens` of every one of `user_ids`, int64 `(n,)`.

    Raises:
        EmbeddingError: an id appears twice, or is not a user of the split.
    """
    position = {str(token): index for index, token in enumerate(user_tokens)}
    unknown = [str(user) for user in user_ids if str(user) not in position]
    if unknown or len(set(user_ids.tolist())) != len(user_ids):
        raise EmbeddingError(
            f"embeddings are of {len(unknown):,} users who are not in the split ({shown(unknown, 5)}) or name a user twice; "
            "encode the profiles of this split anew"
        )
    return np.array([position[str(user)] for user in user_ids], dtype=np.int64)


def _check_texts(embeddings: Embeddings, store: ArtifactStore) -> None:
    """Checks that each row's text hash is that of the profile its user has; means of item texts have no text of their own.

    Raises:
        EmbeddingError: ids were permuted between texts and vectors.
    """
    inputs = store.manifest(EMBEDDINGS, embeddings.key).inputs
    if "profiles" not in inputs:
        return
    profiles = Profiles.load(store, str(inputs["profiles"]))
    texts = dict(zip(*profiles.texts(), strict=True))
    wrong = [
        str(user)
        for user, digest in zip(embeddings.user_ids, embeddings.text_hashes, strict=True)
        if str(user) not in texts or text_hash(texts[str(user)]) != digest
    ]
    if wrong:
        raise EmbeddingError(
            f"embeddings {embeddings.key} belong to other texts than the profiles of {len(wrong):,} users ({shown(wrong, 5)}): ids and "
            f"vectors were permuted, or the texts written anew; delete {store.root}/{EMBEDDINGS}/{embeddings.key} and run again"
        )
