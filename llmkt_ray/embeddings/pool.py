"""An actor pool of Ray Data that encodes whole batches: which worker gets which cannot change a float."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import ray

from llmkt_ray.embeddings.encoders import encoder_of
from llmkt_ray.profiles.quiet import quiet_ray_data
from llmkt_ray.study import EmbeddingConfig, TaskResources


class _Worker:
    """One actor of the pool: holds the model, and gets whole batches."""

    def __init__(self, config: EmbeddingConfig, device: str) -> None:
        self._encoder = encoder_of(config, device)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        vectors = [self._encoder.encode(list(texts)) for texts in block["texts"]]
        return {"batch": block["batch"], "vectors": np.array([part.tobytes() for part in vectors], dtype=object)}


def pooled(
    config: EmbeddingConfig, batches: list[list[str]], workers: int, resources: TaskResources, device: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index of a batch, vectors float32 `(len(batch), dim)`) as batches finish, in any order.

    Args:
        config: the encoder.
        batches: texts, one forward pass each.
        workers: actors at the most.
        resources: what one actor asks of Ray.
        device: "cpu" or "cuda".
    """
    table = pa.table({"batch": pa.array(range(len(batches))), "texts": pa.array(batches, pa.list_(pa.string()))})
    # One block a batch, so that a pool of any size can share the work.
    pool = ray.data.from_arrow([table.slice(row, 1) for row in range(len(table))]).map_batches(
        _Worker,
        fn_constructor_args=(config, device),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(batches))),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
    )
    with quiet_ray_data():
        for row in pool.iter_rows():
            index = int(row["batch"])
            yield index, np.frombuffer(row["vectors"], np.float32).reshape(len(batches[index]), -1)
