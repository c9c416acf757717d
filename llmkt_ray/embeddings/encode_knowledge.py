"""The making of knowledge vectors: profiles' embeddings joined to the split, item texts by the same encoder."""

import time

import numpy as np
import pyarrow as pa

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.encode import device_of, embed
from llmkt_ray.embeddings.encoders import encoder_identity, is_fitted_on_texts
from llmkt_ray.embeddings.knowledge import KIND, Knowledge, knowledge_inputs, knowledge_key
from llmkt_ray.embeddings.targets import join_users, standardize
from llmkt_ray.embeddings.vectors import Embeddings
from llmkt_ray.errors import EmbeddingError
from llmkt_ray.profiles.items import ItemTexts
from llmkt_ray.study import EmbeddingConfig, TaskResources


def encoder_problem(config: EmbeddingConfig) -> str | None:
    """Returns why an encoder cannot make knowledge vectors, or None."""
    if not is_fitted_on_texts(config):
        return None
    return (
        f"KAR reads users and items in one space, but encoder {config.encoder!r} is fitted on each set of texts by itself; use one with "
        "weights, for example sentence-transformers/all-MiniLM-L6-v2"
    )


def make_knowledge(
    config: EmbeddingConfig,
    *,
    embeddings_key: str,
    texts: ItemTexts,
    data: PreparedData,
    store: ArtifactStore,
    workers: int = 0,
    resources: TaskResources = TaskResources(),  # noqa: B008 - frozen
) -> Knowledge:
    """Returns the knowledge vectors of a split, from the store where they are there already.

    Args:
        config: the encoder, the one that made the embeddings.
        embeddings_key: of embeddings of profiles of this split.
        texts: the item knowledge.
        data: the split.
        store: where the embeddings are and the vectors go.
        workers: actors of a Ray Data pool for the item texts; 0: in this process.
        resources: what one actor asks of Ray.

    Raises:
        EmbeddingError: the encoder gives NaN or cannot be used, or the embeddings are of other users.
        StorageError: the result cannot be stored.
    """
    key = knowledge_key(embeddings_key, texts.key)
    if store.find(KIND, key) is not None:
        return Knowledge.load(store, key)
    problem = encoder_problem(config)
    if problem:
        raise EmbeddingError(problem)
    started = time.monotonic()
    embeddings = Embeddings.load(store, embeddings_key)
    users = np.zeros((data.n_users, embeddings.vectors.shape[1]), np.float32)
    users[join_users(embeddings.user_ids, data.user_tokens)] = standardize(np.asarray(embeddings.vectors, dtype=np.float64))[0]
    ids, of_items = texts.texts()
    embedded = embed(config, ids, of_items, store, workers=workers, resources=resources, item_texts=texts.key)
    items = np.zeros((data.n_items, users.shape[1]), np.float32)
    items[join_users(embedded.user_ids, data.item_tokens)] = standardize(np.asarray(embedded.vectors, dtype=np.float64))[0]
    store.save(
        KIND,
        key,
        inputs=knowledge_inputs(embeddings_key, texts.key),
        arrays={"users": users, "items": items},
        tables={
            "users": pa.table({"user_id": [str(token) for token in data.user_tokens]}),
            "items": pa.table({"item_id": [str(token) for token in data.item_tokens]}),
        },
        notes={
            "dims": int(users.shape[1]),
            "users": data.n_users,
            "users_with_profile": len(embeddings.user_ids),
            "items": data.n_items,
            "items_with_text": len(ids),
            "device": device_of(resources),
        },
        versions=encoder_identity(config)["versions"],
        wall_s=time.monotonic() - started,
    )
    return Knowledge.load(store, key)
