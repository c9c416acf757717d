"""Text encoders, chosen by name and never replaced by another in silence."""

import asyncio
import json
from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from safetensors import SafetensorError
from threadpoolctl import threadpool_limits

from llmkt_ray.embeddings.limits import most_tokens, read_json
from llmkt_ray.embeddings.weights import Weights, find_weights, output_width
from llmkt_ray.errors import EmbeddingError
from llmkt_ray.study import EmbeddingConfig

if TYPE_CHECKING:
    from llmkt_ray.profiles.endpoint import Reply

TFIDF_SVD = "tfidf_svd"
_TIMEOUT_S = 60.0


class TextEncoder(Protocol):
    """Turns texts into vectors."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 `(len(texts), dim)`."""


class SentenceTransformerEncoder:
    """A sentence-transformers model on one thread: the same batch gives the same floats in any process of a machine.

    Args:
        config: names the model; its `prefix` is put before every text.
        device: "cpu" or "cuda".

    Raises:
        EmbeddingError: the weights are not to be had, or sentence-transformers cannot load them.
    """

    def __init__(self, config: EmbeddingConfig, device: str = "cpu") -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        weights = find_weights(config.encoder, config.revision)
        self._prefix = config.prefix
        self._threads = torch.set_num_threads, torch.get_num_threads
        # Its bar for loading weights would break into the study's own progress.
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            self._model = SentenceTransformer(
                str(weights.folder), device=device, local_files_only=True, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        except (ValueError, RuntimeError, OSError, LookupError, TypeError, AttributeError, ImportError, SafetensorError) as error:
            raise EmbeddingError(
                f"sentence-transformers does not load encoder {config.encoder!r} from {weights.folder} "
                f"({' '.join(str(error).split())[:300]}); check the folder's files and the memory of the device, or use another encoder"
            ) from error
        if config.max_tokens is not None:
            self._model.max_seq_length = config.max_tokens

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 `(len(texts), dim)`, one forward pass for all of them."""
        set_threads, get_threads = self._threads
        before = get_threads()
        # How a matrix product is cut over threads changes its last bits.
        set_threads(1)
        try:
            vectors = self._model.encode(
                [self._prefix + text for text in texts], batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True
            )
        finally:
            set_threads(before)
        return np.asarray(vectors, dtype=np.float32)


class TfidfSvdEncoder:
    """Words and word pairs by TF-IDF, reduced by a truncated SVD: no weights, fitted on the texts it is given, all at once."""

    def __init__(self, config: EmbeddingConfig) -> None:
        self._dims = config.dims

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 `(len(texts), dims)` with rows of length 1 (0 where a text has no word).

        Raises:
            EmbeddingError: there are too few texts or words for `dims`.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.preprocessing import normalize

        try:
            counts = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=50_000).fit_transform(texts)
        except ValueError as error:
            raise EmbeddingError(f"tfidf_svd found no word in {len(texts):,} texts ({error}); look at the profiles") from error
        most = min(counts.shape) - 1
        if self._dims > most:
            raise EmbeddingError(
                f"tfidf_svd cannot make {self._dims} dimensions of {counts.shape[0]:,} different texts with {counts.shape[1]:,} terms; "
                f"set embedding.dims to at most {most}"
            )
        # How a matrix product is cut over threads changes its last bits.
        with threadpool_limits(1):
            reduced = TruncatedSVD(n_components=self._dims, algorithm="arpack", random_state=0).fit_transform(counts)
        return np.asarray(normalize(reduced), dtype=np.float32)


class EndpointEncoder:
    """A model behind an OpenAI-compatible /embeddings endpoint; a batch is one request.

    Args:
        config: the endpoint, its model and limits.

    Raises:
        ResourceError: the key's environment variable is not set.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        from llmkt_ray.profiles.endpoint import Endpoint

        self._config = config
        self._endpoint = Endpoint(
            config.base_url,
            config.api_key_env,
            requests_per_minute=config.requests_per_minute,
            concurrency=1,
            timeout_s=_TIMEOUT_S,
        )

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 `(len(texts), dim)`.

        Raises:
            ResourceError: the key is refused, there is no such model, or the endpoint cannot be reached.
            EmbeddingError: the endpoint does not give a vector of one width for every text.
        """
        reply = asyncio.run(self._ask(texts))
        if reply.problem is not None:
            raise EmbeddingError(
                f"{self._config.base_url} gave no embeddings of {self._config.encoder!r}: {reply.problem}; run again later"
            )
        try:
            rows = {int(row["index"]): row["embedding"] for row in json.loads(reply.body)["data"]}
            vectors = np.array([rows[index] for index in range(len(texts))], dtype=np.float32)
        except (ValueError, LookupError, TypeError) as error:
            raise EmbeddingError(
                f"{self._config.base_url} answered {len(texts)} texts with something else than one vector each: {reply.body[:120]!r}"
            ) from error
        if vectors.ndim != 2:
            raise EmbeddingError(f"{self._config.base_url} answered with numbers of shape {vectors.shape} instead of one vector a text")
        return vectors

    async def _ask(self, texts: Sequence[str]) -> "Reply":
        session = await self._endpoint.open()
        try:
            request = {"model": self._config.encoder, "input": [self._config.prefix + text for text in texts], "encoding_format": "float"}
            return await self._endpoint.post(session, "embeddings", request)
        finally:
            await session.close()


def runs_once(config: EmbeddingConfig) -> bool:
    """Whether the encoder works from one process: it sees all texts at once, or an endpoint does the work."""
    return config.encoder == TFIDF_SVD or config.via == "openai"


def is_fitted_on_texts(config: EmbeddingConfig) -> bool:
    """Whether the encoder sees all texts at once, and so cannot be spread over workers."""
    return config.encoder == TFIDF_SVD


def encoder_of(config: EmbeddingConfig, device: str = "cpu") -> TextEncoder:
    """Returns the encoder of a study, its weights loaded.

    Raises:
        EmbeddingError: the weights are not to be had.
    """
    if config.encoder == TFIDF_SVD:
        return TfidfSvdEncoder(config)
    if config.via == "openai":
        return EndpointEncoder(config)
    if config.via == "vllm":
        from llmkt_ray.embeddings.vllm_encoder import VllmEncoder

        return VllmEncoder(config, device)
    return SentenceTransformerEncoder(config, device)


def _tfidf_identity(config: EmbeddingConfig) -> dict[str, Any]:
    if config.prefix:
        raise EmbeddingError(
            f"embedding.prefix {config.prefix!r} means nothing to {TFIDF_SVD}: words that every text has weigh nothing; leave it out, or "
            "choose an encoder that reads an instruction"
        )
    return {"encoder": TFIDF_SVD, "dims": config.dims, "versions": {"scikit-learn": version("scikit-learn"), "scipy": version("scipy")}}


def _endpoint_identity(config: EmbeddingConfig) -> dict[str, Any]:
    return {"encoder": config.encoder, "base_url": config.base_url.rstrip("/"), "prefix": config.prefix, "versions": {}}


def _read_weights(config: EmbeddingConfig) -> Weights:
    """Returns the files of an encoder that runs here, its settings checked against them.

    Raises:
        EmbeddingError: they are not to be had, want code of their own to run, or can read less than `max_tokens`.
    """
    weights = find_weights(config.encoder, config.revision)
    # vLLM has its own classes for some of these models, and says itself where it has not.
    if config.via == "local" and "auto_map" in read_json(weights.folder / "config.json"):
        raise EmbeddingError(
            f"encoder {config.encoder!r} brings code of its own (`auto_map` in {weights.folder / 'config.json'}), and no model's code is "
            "run here; use an encoder whose architecture transformers has, or run it behind an endpoint with via: openai"
        )
    most = most_tokens(config, weights.folder)
    if config.max_tokens is not None and most is not None and config.max_tokens > most:
        raise EmbeddingError(
            f"embedding.max_tokens is {config.max_tokens:,}, but {config.encoder!r} can read {most:,} tokens at the most; set it to "
            f"{most} or less, or leave it out for the model's own limit"
        )
    return weights


def _sentence_transformer_identity(config: EmbeddingConfig) -> dict[str, Any]:
    weights = _read_weights(config)
    return {
        "encoder": config.encoder,
        "weights_sha256": weights.sha256,
        "config_sha256": weights.config_sha256,
        "max_tokens": config.max_tokens,
        "prefix": config.prefix,
        "batch_size": config.batch_size,
        "versions": {name: version(name) for name in ("sentence-transformers", "transformers", "torch")},
    }


def _vllm_identity(config: EmbeddingConfig) -> dict[str, Any]:
    weights = _read_weights(config)
    return {
        "encoder": config.encoder,
        "via": "vllm",
        "weights_sha256": weights.sha256,
        "config_sha256": weights.config_sha256,
        "max_tokens": config.max_tokens,
        "prefix": config.prefix,
        "batch_size": config.batch_size,
        "engine": dict(config.engine),
        "versions": {name: version(name) for name in sorted(set(packages_distributions().get("vllm", [])))},
    }


def encoder_identity(config: EmbeddingConfig) -> dict[str, Any]:
    """Returns what determines the vectors beside the texts: part of the embeddings' key, JSON values only.

    Raises:
        EmbeddingError: the weights are not to be had, or a setting means nothing to the encoder; so a study stops before anything
            expensive starts.
    """
    if config.encoder == TFIDF_SVD:
        return _tfidf_identity(config)
    identities = {"openai": _endpoint_identity, "vllm": _vllm_identity, "local": _sentence_transformer_identity}
    return identities[config.via](config)


ENDPOINT_WIDTHS = {"text-embedding-ada-002": 1536, "text-embedding-3-small": 1536, "text-embedding-3-large": 3072}
"""Widths of hosted encoders that are known by name."""


def encoder_width(config: EmbeddingConfig) -> int | None:
    """Returns the width of an encoder's vectors without loading it, None where only its first answer will tell.

    Raises:
        EmbeddingError: the weights are not to be had.
    """
    if config.encoder == TFIDF_SVD:
        return config.dims
    if config.via == "openai":
        return ENDPOINT_WIDTHS.get(config.encoder)
    return output_width(find_weights(config.encoder, config.revision).folder)
