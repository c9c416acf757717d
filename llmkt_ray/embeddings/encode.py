"""Texts of users and of items to vectors, in fixed batches, in this process or by an actor pool of Ray Data.

Texts are sorted by their SHA-256 and cut into batches once; a batch is one forward pass. So neither the number of workers, nor the
order in which they finish, nor the order of users can change a float. A text that this encoder embedded before, in whatever set of
the storage, keeps the vector that it has: what a second set costs is its new texts.
"""

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.embeddings.encoders import encoder_identity, encoder_of, is_fitted_on_texts, runs_once
from llmkt_ray.embeddings.limits import cut_notes
from llmkt_ray.embeddings.vectors import KIND, Embeddings, check_finite, text_hash
from llmkt_ray.embeddings.weights import find_weights
from llmkt_ray.errors import ArtifactError
from llmkt_ray.profiles.engines.base import Progress, silent
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.seeds import content_key
from llmkt_ray.study import EmbeddingConfig, TaskResources

EMBEDDINGS_VERSION = 1
"""Part of every key; rises when a change of ours alters vectors."""


def embeddings_key(profiles_key: str, identity: dict[str, Any]) -> str:
    """Returns the key of the embeddings of these profiles by the encoder with this identity."""
    return content_key(_inputs(identity, profiles=profiles_key))


def _inputs(identity: dict[str, Any], **source: str) -> dict[str, Any]:
    return {"version": EMBEDDINGS_VERSION, "encoder": identity, **source}


def fixed_batches(texts: Sequence[str], size: int) -> list[list[str]]:
    """Returns the different texts, ordered by hash and cut into batches of `size` (the last may be shorter)."""
    ordered = sorted(set(texts), key=text_hash)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def encode(
    config: EmbeddingConfig,
    profiles: Profiles,
    store: ArtifactStore,
    *,
    workers: int = 0,
    resources: TaskResources = TaskResources(),  # noqa: B008 - frozen
    progress: Progress = silent,
) -> Embeddings:
    """Returns the embeddings of profiles, from the store where they are there already.

    Args:
        config: the encoder.
        profiles: texts; users without one have no row in the result.
        store: where the artifact goes.
        workers: actors of a Ray Data pool; 0: in this process, without Ray. The floats are the same.
        resources: what one actor asks of Ray; with a GPU the model runs there.
        progress: called with (texts done, texts in all).

    Raises:
        EmbeddingError: the weights are not to be had, or the encoder gives NaN.
        StorageError: the result cannot be stored.
    """
    ids, texts = profiles.texts()
    return embed(config, ids, texts, store, workers=workers, resources=resources, progress=progress, profiles=profiles.key)


def embed(
    config: EmbeddingConfig,
    ids: Sequence[str],
    texts: Sequence[str],
    store: ArtifactStore,
    *,
    workers: int = 0,
    resources: TaskResources = TaskResources(),  # noqa: B008 - frozen
    progress: Progress = silent,
    **source: str,
) -> Embeddings:
    """Returns the embeddings of named texts, from the store where they are there already.

    The arguments are those of `encode`, and:
        ids: raw ids, of users or of items, one a text.
        texts: one an id; equal texts are encoded once.
        source: the kind of artifact that the texts are of, and its key.
    """
    identity = encoder_identity(config)
    inputs = _inputs(identity, **source)
    key = content_key(inputs)
    hashes = [text_hash(text) for text in texts]
    if store.find(KIND, key) is not None:
        embeddings = Embeddings.load(store, key)
        if embeddings.text_hashes.tolist() == hashes:  # not so where damaged texts were written anew
            return embeddings
    started = time.monotonic()
    known = {} if is_fitted_on_texts(config) else known_vectors(store, identity, set(hashes))
    matrix = encode_texts(config, texts, workers=workers, resources=resources, progress=progress, known=known)
    check_finite(matrix, ids, config.encoder)
    store.save(
        KIND,
        key,
        inputs=inputs,
        arrays={"vectors": matrix},
        tables={"users": pa.table({"user_id": list(ids), "text_sha256": hashes})},
        notes={
            "dim": int(matrix.shape[1]),
            "texts": len(texts),
            "different_texts": len(set(texts)),
            "texts_embedded_before": len(known),
            "device": device_of(resources),
            "workers": workers,
            "source": source_of(config),
            **({} if runs_once(config) else cut_notes(config, texts)),
        },
        versions=identity["versions"],
        wall_s=time.monotonic() - started,
    )
    return Embeddings.load(store, key)


def encode_texts(
    config: EmbeddingConfig,
    texts: Sequence[str],
    *,
    workers: int = 0,
    resources: TaskResources = TaskResources(),  # noqa: B008 - frozen
    progress: Progress = silent,
    known: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> np.ndarray:
    """Returns the vectors of texts, float32 `(len(texts), dim)`, equal texts encoded once.

    The arguments are those of `encode`; `known` holds vectors `(dim,)` by the hash of their text: these are not encoded.
    """
    hashes = {text: text_hash(text) for text in texts} if known else {}
    vectors = {text: known[digest] for text, digest in hashes.items() if digest in known}
    new = [text for text in texts if text not in vectors]
    if not new:
        return np.stack([vectors[text] for text in texts]).astype(np.float32)
    parts: Iterator[tuple[int, np.ndarray]]
    if is_fitted_on_texts(config):
        batches = [sorted(set(new), key=text_hash)]
        parts = iter([(0, encoder_of(config).encode(batches[0]))])
    else:
        batches = fixed_batches(new, config.batch_size)
        if workers and not runs_once(config):
            # Imported here: encoding in this process must not need Ray.
            from llmkt_ray.embeddings.pool import pooled

            parts = pooled(config, batches, workers, resources, device_of(resources))
        else:
            parts = _in_process(config, batches, device_of(resources))
    for index, part in parts:
        vectors.update(zip(batches[index], part, strict=True))
        progress(len(vectors), len(set(texts)))
    return np.stack([vectors[text] for text in texts]).astype(np.float32)


def known_vectors(store: ArtifactStore, identity: dict[str, Any], wanted: Set[str]) -> dict[str, np.ndarray]:
    """Returns hash to vector of the texts that the encoder with this identity has embedded for any set of texts in this storage.

    Args:
        store: where finished embeddings are.
        identity: of the encoder, prefix included.
        wanted: hashes of texts.
    """
    encoder, found = content_key(identity), dict[str, np.ndarray]()
    for manifest in store.manifests(KIND):
        made_of = manifest.inputs
        if made_of.get("version") != EMBEDDINGS_VERSION or content_key(made_of["encoder"]) != encoder:
            continue
        try:
            embeddings = Embeddings.load(store, manifest.key)
        except ArtifactError:  # damaged: it will be made anew
            continue
        new = ((row, digest) for row, digest in enumerate(embeddings.text_hashes.tolist()) if digest in wanted and digest not in found)
        found.update((digest, np.array(embeddings.vectors[row])) for row, digest in new)
    return found


def device_of(resources: TaskResources) -> str:
    """Returns the device of an encoder with these resources."""
    return "cuda" if resources.gpus else "cpu"


def source_of(config: EmbeddingConfig) -> str:
    """Returns where the weights came from, for reports."""
    if is_fitted_on_texts(config):
        return "no weights"
    return config.base_url if config.via == "openai" else find_weights(config.encoder, config.revision).source


def _in_process(config: EmbeddingConfig, batches: list[list[str]], device: str) -> Iterator[tuple[int, np.ndarray]]:
    encoder = encoder_of(config, device)
    for index, batch in enumerate(batches):
        yield index, encoder.encode(batch)
