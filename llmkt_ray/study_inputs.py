"""What a study starts from, as sections of its file: datasets, profiles, their embedding and its reduction."""

import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from llmkt_ray.section import Section, as_tuple, told_apart

_RUNS_CODE = (
    "trust_remote_code", "worker_cls", "worker_extension_cls", "scheduler_cls", "logits_processors", "reasoning_parser_plugin",
    "tool_parser_plugin",
)  # fmt: skip
"""Settings of vLLM that import what they name, or what comes with a model."""
_EXECUTORS = ("ray", "mp", "uni", "external_launcher")
_SET_ELSEWHERE = {
    "model": "it is the key `model` (of embedding: `encoder`)",
    "revision": "it is a key of its own, beside `engine`",
    "seed": "it is derived from the study's seed",
    **dict.fromkeys(("runner", "convert", "task"), "it follows from what the engine is for: profiles or embedding"),
    "disable_log_stats": "the engines log none",
}


def _harmless(engine: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    """Refuses what would run code that the study brings, and what is set elsewhere."""
    for name, value in engine.items():
        if name in _RUNS_CODE:
            raise ValueError(
                f"{name} lets vLLM run code that comes with a model or lies on this machine, and a study file never does that; leave it "
                "out (llm: openai asks a `vllm serve` that you started with it yourself)"
            )
        # Any other text is the path of a class, which vLLM imports.
        if name == "distributed_executor_backend" and value not in _EXECUTORS:
            raise ValueError(f"{name} must be one of {', '.join(_EXECUTORS)}, but got {value!r}: a class is code, and none is imported")
        if name in _SET_ELSEWHERE:
            raise ValueError(f"{name} cannot be set here: {_SET_ELSEWHERE[name]}; leave it out of `engine`")
    return engine


EngineSettings = Annotated[dict[str, str | int | float | bool], AfterValidator(_harmless)]


class PositiveRule(Section):
    """Which interactions count as positives (METHOD.md, section 1)."""

    rating_at_least: float | None = None
    """Smallest rating that is a positive; None: every interaction is one (implicit feedback)."""


class FilterRule(Section):
    """Which users and items stay, counted in interactions before the split; applied until nothing changes."""

    user_min: int = Field(1, ge=1)
    user_max: int | None = Field(None, ge=1)
    """Largest number of interactions of a user, exclusive: the paper's [20, 500) is user_min 20, user_max 500."""
    item_min: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.user_max is not None and self.user_max <= self.user_min:
            raise ValueError(f"user_max (exclusive) must be above user_min {self.user_min}, but got {self.user_max}: no user would stay")
        return self


class SplitRule(Section):
    """How interactions are divided into train, validation and test."""

    kind: Literal["random", "leave_one_out", "time", "column"] = "random"
    ratios: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, validation and test; used by `random` (per user) and `time` (one global order)."""
    repetitions: int = Field(1, ge=1, le=100)
    """Number of splits, each with a seed of its own; only where chance divides: not `time`, nor a column with its own validation part."""

    @model_validator(mode="after")
    def _ratios(self) -> Self:
        if any(not 0 < share < 1 for share in self.ratios) or not math.isclose(sum(self.ratios), 1.0, abs_tol=1e-6):
            raise ValueError(f"split ratios must each lie in (0, 1) and sum to 1, but got {list(self.ratios)} (sum {sum(self.ratios):g})")
        if self.kind == "time" and self.repetitions > 1:
            raise ValueError(f"a split by time is always the same: {self.repetitions} repetitions are no replicates; set repetitions: 1")
        return self


class DatasetConfig(Section):
    """One dataset: known by name, or a folder in RecBole's atomic format or of Parquet tables."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    path: str | None = None
    domain: Literal["movies", "music", "books", "generic"] | None = None
    """What the items are, for prompts; None: that of the known dataset, or generic."""
    positive: PositiveRule = PositiveRule()
    filters: FilterRule = FilterRule()
    split: SplitRule = SplitRule()
    train_share: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = Field((1.0,), min_length=1)
    """Sparsity factor: shares of each user's train rows that are kept, in (0, 1]; masks use the full train split."""

    @model_validator(mode="after")
    def _train_share(self) -> Self:
        for share in self.train_share:
            if not 0 < share <= 1:
                raise ValueError(f"train_share must lie in (0, 1], but got {share:g}")
        return self


LANGUAGE_MODELS = ("vllm", "vllm-sync", "openai")
"""Values of `llm` that ask a language model."""


class ProfileConfig(Section):
    """One choice of who writes the profiles."""

    llm: Literal["template", "file", "vllm", "vllm-sync", "openai"]
    name: str | None = None
    """Label in results; None: derived from llm and model."""
    path: str | None = None
    """`file`: a Parquet file with user_id and profile, or a folder with `profiles.parquet` and `manifest.json`."""
    declares_split: str | None = None
    """`file` without a manifest: the split the texts were written from: "column", a split's key or its train digest."""
    min_coverage: float = Field(0.9, gt=0, le=1)
    """Smallest share of the users that must have a text; below it the study stops."""
    max_flagged: float = Field(1.0, ge=0, le=1)
    """Largest share of texts with a flag (refused, truncated, echo...) before the study stops; 1: never."""
    full_history: bool = False
    """Profiles from the full train split where `train_share` thins what models learn from; by an LLM once for all shares."""
    model: str | None = None
    """`vllm`, `vllm-sync`: a folder or a hub name; `openai`: the endpoint's name of the model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; None: the default one."""
    prompt: str | None = None
    """A prompt template of one's own (Jinja2 with blocks `system` and `user`); None: the built-in one of the dataset's domain."""
    prompt_budget: int = Field(2048, ge=64)
    """Most tokens a prompt may have."""
    long_history: Literal["select", "chunks"] = "select"
    """A history that is too long for one prompt: `select` its most telling rows, or `chunks`: a text about each part, then one of all."""
    structured: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")], ...], Field(max_length=12)] = ()
    """Structured output: names of parts ([genres, moods, dislikes]) that every profile has; a text each, stored as one line a part."""
    demographics: bool = False
    """Whether age, gender and occupation enter the prompt, and then the `template` twin's text too."""
    max_tokens: int = Field(220, ge=1)
    """Most tokens a profile may have."""
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    """None: not said to the model; endpoints that take temperature or top_p, never both (Claude since Opus 4.1), need that."""
    generation: int = Field(0, ge=0)
    """Index of the generation: another one gives other texts of the same model and prompt, as a factor, at a temperature above 0."""
    attempts: int = Field(2, ge=1, le=10)
    """How often a user's profile is tried before the row keeps its error."""
    block_size: int = Field(32, ge=1)
    """Prompts handed to an engine at once; a part file appears as a block finishes."""
    workers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple)] = (1,)
    """Engine actors: a number, or [min, max] for a pool that grows (`vllm`)."""
    engine: EngineSettings = {}
    """vLLM's own engine settings by name: tensor_parallel_size, max_model_len, gpu_memory_utilization..."""
    base_url: str = "https://api.openai.com/v1"
    """`openai`: any endpoint that speaks OpenAI's chat completions."""
    api_key_env: str = "OPENAI_API_KEY"
    """`openai`: the environment variable that holds the key; the key itself never stands in a study."""
    requests_per_minute: float = Field(500, gt=0)
    """`openai`: rate limit."""
    concurrency: int = Field(16, ge=1)
    """`openai`: requests in flight at the most."""
    timeout_s: float = Field(60, gt=0)
    """`openai`: seconds to wait for one answer."""

    @model_validator(mode="after")
    def _model(self) -> Self:
        language = self.llm in LANGUAGE_MODELS
        if language and not self.model:
            raise ValueError(f"profiles with llm {self.llm!r} need a `model`")
        if not language and self.model:
            raise ValueError(f"`model` belongs to a language model (vllm, vllm-sync, openai), not to {self.llm!r}")
        if self.structured and not language:
            raise ValueError(f"`structured` belongs to a language model (vllm, vllm-sync, openai), not to {self.llm!r}")
        if len(set(self.structured)) < len(self.structured):
            raise ValueError(f"the parts of `structured` have names of their own, but got {list(self.structured)}")
        if len(self.workers) > 2 or (len(self.workers) == 2 and self.workers[0] > self.workers[1]):
            raise ValueError(f"workers is a number or [min, max], but got {list(self.workers)}")
        return self

    @model_validator(mode="after")
    def _path(self) -> Self:
        if self.llm == "file" and not self.path:
            raise ValueError("profiles with llm 'file' need a `path` to a Parquet file of user_id and profile")
        if self.llm != "file" and self.path:
            raise ValueError(f"`path` belongs to llm 'file', not to {self.llm!r}")
        if self.llm != "file" and self.declares_split:
            raise ValueError(f"`declares_split` belongs to llm 'file', not to {self.llm!r}: other engines write from the split themselves")
        return self

    @property
    def label(self) -> str:
        """The name of this choice in results and reports."""
        return self.name or (f"{self.llm}:{self.model}" if self.model else self.llm)


class EmbeddingConfig(Section):
    """How profile texts become vectors."""

    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """A sentence-transformers name or path, `tfidf_svd` (scikit-learn, no weights), or, with `via: openai`, a name the endpoint knows."""
    via: Literal["local", "vllm", "openai"] = "local"
    """What runs it: sentence-transformers, vLLM's embed task, or any OpenAI-compatible /embeddings endpoint (text-embedding-ada-002)."""
    engine: EngineSettings = {}
    """`via: vllm`: vLLM's own engine settings by name: max_model_len, gpu_memory_utilization, dtype..."""
    base_url: str = "https://api.openai.com/v1"
    """`via: openai`: the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """`via: openai`: the environment variable that holds the key."""
    requests_per_minute: float = Field(500, gt=0)
    """`via: openai`: rate limit; one request encodes `batch_size` texts."""
    dims: int = Field(256, ge=2)
    """Width of `tfidf_svd`; an encoder with weights has its own."""
    batch_size: int = Field(64, ge=1)
    """Texts in one forward pass; fixes which texts are encoded together, and so is part of the key."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; None: the default one."""
    prefix: str = ""
    """Put before every text: the instruction that some encoders need ("passage: ")."""
    max_tokens: int | None = Field(None, ge=8)
    """Where texts are cut; None: the model's own limit. Not for `tfidf_svd` and endpoints, which leave `revision` unread too."""

    @model_validator(mode="after")
    def _engine(self) -> Self:
        if self.engine and self.via != "vllm":
            raise ValueError(f"embedding.engine holds settings of vLLM, but via is {self.via!r}; set via: vllm, or leave engine out")
        if self.encoder == "tfidf_svd" and self.via != "local":
            raise ValueError(f"encoder 'tfidf_svd' has no weights that {self.via!r} could run; leave `via` out")
        if self.encoder == "tfidf_svd" or self.via == "openai":
            # A setting that changes nothing would still name a level, and two equal levels would be compared.
            who = "'tfidf_svd', which reads whole texts and has no weights" if self.via == "local" else "an endpoint, which has its own"
            given = {"max_tokens": self.max_tokens, "revision": self.revision}
            unread = [f"{name} {value!r}" for name, value in given.items() if value is not None]
            if unread:
                raise ValueError(f"embedding.{' and '.join(unread)} would change nothing for {who}; leave it out")
        return self

    @property
    def label(self) -> str:
        """The name of this choice in results and reports: the encoder, and what of its settings is not the default and changes vectors."""
        where = ("base_url",) if self.via == "openai" else ()
        width = ("dims",) if self.encoder == "tfidf_svd" else ()
        return told_apart(self.encoder, self, ("via", *where, *width, "revision", "prefix", "max_tokens"))


class ReductionConfig(Section):
    """How embeddings become targets."""

    method: str = "umap"
    """umap, pca, pca_whiten, random_projection, tsne (2 or 3 dims) or none (the embedding itself; needs a student projection)."""
    dims: Literal["layer"] | Annotated[int, Field(ge=1)] = "layer"
    """Width of the target: `layer` is the width of the tapped layer; a number needs a student projection if it differs."""
    standardize: bool = True
    """Mean 0 and standard deviation 1 per dimension on the users of the train split."""
    refit: bool = False
    """Fit anew for every seed, on all users with a profile, as the published code does; False: once, on users with train rows."""
    n_neighbors: int = Field(15, ge=2)
    min_dist: float = Field(0.1, ge=0, le=1)
    fit_sample: int = Field(20_000, ge=100)
    """Users a reducer is fitted on at the most, a seeded sample of those with a profile; the others are transformed."""

    @property
    def label(self) -> str:
        """The name of this choice in results and reports, beside its dims: the method, and what of its settings is not the default."""
        own = ("n_neighbors", "min_dist") if self.method == "umap" else ()
        return told_apart(self.method, self, ("standardize", "refit", *own, "fit_sample"))
