"""vLLM's embed task as a text encoder: any model that vLLM can pool, on a GPU or a CPU, in this process or in an actor of the pool."""

import os
from collections.abc import Sequence

import numpy as np

from llmkt_ray.embeddings.weights import find_weights
from llmkt_ray.errors import EmbeddingError
from llmkt_ray.profiles.engines.vllm_common import environment, require_vllm
from llmkt_ray.study import EmbeddingConfig, TaskResources

_CPU_KV_CACHE_BYTES = 1 << 28
"""Texts are read once and nothing is generated, so a small cache does; without one vLLM takes most of a machine's memory."""


class VllmEncoder:
    """One vLLM engine that embeds.

    Args:
        config: names the model; its `prefix` is put before every text, `engine` goes to vLLM.
        device: "cpu" or "cuda".

    Raises:
        ResourceError: vLLM is not installed.
        EmbeddingError: the weights are not to be had, or the engine does not start with this model.
    """

    def __init__(self, config: EmbeddingConfig, device: str = "cpu") -> None:
        require_vllm()
        # The engine lives in this process, so that nothing is left over when it ends.
        variables = environment(TaskResources(gpus=1.0 if device == "cuda" else 0.0))
        os.environ.update(variables | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
        import vllm

        # The files that the key is made of: vLLM by itself would look for another name, and never in the offline extra.
        folder = find_weights(config.encoder, config.revision).folder
        settings = {"runner": "pooling", "convert": "embed", "seed": 0, **config.engine}
        if device == "cpu":
            settings.setdefault("kv_cache_memory_bytes", _CPU_KV_CACHE_BYTES)
        self._prefix = config.prefix
        # Longer texts are cut, as the other encoders do; vLLM itself refuses them.
        self._cut = {"truncation": True, "max_length": config.max_tokens} if config.max_tokens is not None else {"truncation": True}
        try:
            self._llm = vllm.LLM(model=str(folder), disable_log_stats=True, trust_remote_code=False, **settings)
        except (ValueError, RuntimeError, OSError, AssertionError) as error:
            raise EmbeddingError(
                f"vLLM does not start with encoder {config.encoder!r} ({' '.join(str(error).split())[:300]}); check the model and the "
                "memory that `engine` asks for (kv_cache_memory_bytes, gpu_memory_utilization, max_model_len)"
            ) from error

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 `(len(texts), dim)`, as the model's pooler gives them."""
        outputs = self._llm.embed([self._prefix + text for text in texts], use_tqdm=False, tokenization_kwargs=dict(self._cut))
        return np.array([output.outputs.embedding for output in outputs], dtype=np.float32)
