"""The `item_mean` control of METHOD.md section 4: a user is the mean of the embedded texts of the items in the history.

The same encoder as the profiles', the same history, and nobody wrote anything: what an LLM adds must lie above it.
"""

import time
from typing import Any

import numpy as np
import pyarrow as pa

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.history import Entry, Item, item_facts
from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.embeddings.encode import device_of, embed, source_of
from llmkt_ray.embeddings.encoders import encoder_identity
from llmkt_ray.embeddings.limits import NOTES
from llmkt_ray.embeddings.vectors import KIND, Embeddings, text_hash
from llmkt_ray.errors import EmbeddingError
from llmkt_ray.profiles.prompts import line_of
from llmkt_ray.seeds import content_key
from llmkt_ray.study import EmbeddingConfig, TaskResources

ITEM_MEAN_VERSION = 1
"""Part of every key; rises when a change of ours alters vectors."""
BLOCK_ROWS = 8_192


def item_mean_key(split_key: str, identity: dict[str, Any], *, full_history: bool) -> str:
    """Returns the key of the means of a split's items by the encoder with this identity."""
    return content_key(_inputs(split_key, identity, full_history))


def _inputs(split_key: str, identity: dict[str, Any], full_history: bool) -> dict[str, Any]:
    return {"item_mean": ITEM_MEAN_VERSION, "split": split_key, "encoder": identity, "full_history": full_history}


def item_text(item: Item) -> str:
    """Returns an item as the line that stands for it in a prompt, without a rating; empty where nothing is known of it."""
    if not any((item.title, item.genres, item.creator, item.category, item.description)):
        return ""
    return line_of(Entry(0, item, None, None), rated=False)


def encode_item_means(
    config: EmbeddingConfig,
    data: PreparedData,
    store: ArtifactStore,
    *,
    full_history: bool = False,
    workers: int = 0,
    resources: TaskResources = TaskResources(),  # noqa: B008 - frozen
) -> Embeddings:
    """Returns one vector a user, from the store where they are there already.

    Args:
        config: the encoder.
        data: the split; only its train rows are read.
        store: where the artifact goes.
        full_history: from the full train split although the data is thinned.
        workers: actors of a Ray Data pool; 0: in this process.
        resources: what one actor asks of Ray.

    Raises:
        EmbeddingError: no item has a text, the weights are not to be had, or the encoder gives NaN.
        StorageError: the result cannot be stored.
    """
    identity = encoder_identity(config)
    key = item_mean_key(data.key, identity, full_history=full_history)
    if store.find(KIND, key) is not None:
        return Embeddings.load(store, key)
    started = time.monotonic()
    texts = [item_text(item) for item in item_facts(data.items)]
    known = np.array([bool(text) for text in texts])
    if not known.any():
        raise EmbeddingError(
            f"the items of {data.name!r} have no title, genres, creator, category or description, so control 'item_mean' has no text to "
            "embed; give the dataset an items table with one of these columns, or leave 'item_mean' out of `controls`"
        )
    ids, texts = data.item_tokens[known].tolist(), [text for text in texts if text]
    embedded = embed(config, ids, texts, store, workers=workers, resources=resources, items_of_split=data.key)
    of_texts = store.manifest(KIND, embedded.key).notes
    of_items = np.zeros((data.n_items, embedded.vectors.shape[1]))
    of_items[known] = embedded.vectors
    means, users = user_means(of_items, known, data.train_full if full_history else data.train, data.n_users)
    ids = data.user_tokens[users].tolist()
    store.save(
        KIND,
        key,
        inputs=_inputs(data.key, identity, full_history),
        arrays={"vectors": means},
        tables={"users": pa.table({"user_id": ids, "text_sha256": [text_hash("")] * len(ids)})},
        notes={
            "dim": int(means.shape[1]),
            "items": data.n_items,
            "items_with_text": int(known.sum()),
            "users": len(ids),
            "device": device_of(resources),
            "workers": workers,
            "source": source_of(config),
            **{name: of_texts[name] for name in NOTES if name in of_texts},
        },
        versions=identity["versions"],
        wall_s=time.monotonic() - started,
    )
    return Embeddings.load(store, key)


def user_means(
    vectors: np.ndarray, known: np.ndarray, rows: Rows, n_users: int, block_rows: int = BLOCK_ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each user's mean over the positive items of the history; over all of them where none is positive.

    Args:
        vectors: of the items `(n_items, dim)`.
        known: bool `(n_items,)`: who has a vector; the others are left out.
        rows: the histories.
        n_users: number of users.
        block_rows: rows whose vectors are in memory at once, more where one user has more; it changes no float.

    Returns:
        float32 `(n, dim)` and the indices `(n,)` of the users that have such an item.
    """
    usable = rows.where(known[rows.item])
    liked = np.bincount(usable.user[usable.positive], minlength=n_users)
    usable = usable.where(usable.positive | (liked[usable.user] == 0))
    counts = np.bincount(usable.user, minlength=n_users)
    users = np.flatnonzero(counts)
    if not len(users):
        return vectors[:0].astype(np.float32), users
    # Rows are sorted by user: one sum a user, in the order of the rows. Of all rows at once the vectors can be larger than memory.
    starts = np.concatenate([[0], np.cumsum(counts[users])])
    means = np.empty((len(users), vectors.shape[1]), np.float32)
    first = 0
    while first < len(users):
        end = max(first + 1, int(np.searchsorted(starts, starts[first] + block_rows, side="right")) - 1)
        rows_of_block = usable.item[starts[first] : starts[end]]
        sums = np.add.reduceat(vectors[rows_of_block], starts[first:end] - starts[first], axis=0)
        means[first:end] = sums / counts[users[first:end]][:, None]
        first = end
    return means, users
