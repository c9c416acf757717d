"""The study file: one YAML is one study, as frozen pydantic models with unknown keys forbidden.

Reading here is schema only: types, ranges and what contradicts itself inside the file. Names (models, layers,
metrics, encoders) and the data are checked afterwards by the stages that own them; `llmkt check` does all three.
"""

import math
import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from llmkt_ray.compat import as_upstream
from llmkt_ray.section import Section, as_named, as_tuple
from llmkt_ray.seeds import content_key

Arm = Literal[
    "baseline", "alpha0", "shuffled", "shuffled_strata", "gaussian", "constant",
    "template", "item_mean", "leaked", "input_init", "input_concat",
]  # fmt: skip
"""A control arm of METHOD.md section 4; `treated` is not one: it is what the alphas make."""
ARMS: tuple[Arm, ...] = get_args(Arm)
PLAIN_ARMS = ("baseline", "alpha0")
"""Arms that know no profile at all."""
INPUT_ARMS = ("input_init", "input_concat")
"""The paper's rival: the profile as an input of the model, no transfer loss."""
OWN_TARGET_ARMS = ("template", "item_mean", "leaked")
"""Arms that transfer as the treated one does, from targets that are artifacts of their own."""


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
    """Profiles from the full train split where `train_share` thins what models learn from."""
    model: str | None = None
    """`vllm`, `vllm-sync`: a folder or a hub name; `openai`: the endpoint's name of the model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; None: the default one."""
    prompt: str | None = None
    """A prompt template of one's own (Jinja2 with blocks `system` and `user`); None: the built-in one of the dataset's domain."""
    prompt_budget: int = Field(2048, ge=64)
    """Most tokens a prompt may have: the most telling part of a history that fits."""
    demographics: bool = False
    """Whether age, gender and occupation enter the prompt."""
    max_tokens: int = Field(220, ge=1)
    """Most tokens a profile may have."""
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    generation: int = Field(0, ge=0)
    """Index of the generation: another one gives other texts of the same model and prompt, as a factor."""
    attempts: int = Field(2, ge=1, le=10)
    """How often a user's profile is tried before the row keeps its error."""
    block_size: int = Field(32, ge=1)
    """Prompts handed to an engine at once; a part file appears as a block finishes."""
    workers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple)] = (1,)
    """Engine actors: a number, or [min, max] for a pool that grows (`vllm`)."""
    engine: dict[str, str | int | float | bool] = {}
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
        language = self.llm in ("vllm", "vllm-sync", "openai")
        if language and not self.model:
            raise ValueError(f"profiles with llm {self.llm!r} need a `model`")
        if not language and self.model:
            raise ValueError(f"`model` belongs to a language model (vllm, vllm-sync, openai), not to {self.llm!r}")
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
    via: Literal["local", "openai"] = "local"
    """Where the encoder runs: here, or behind any OpenAI-compatible /embeddings endpoint (text-embedding-ada-002 is the paper's)."""
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
    """Where texts are cut; None: the model's own limit."""


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


class ModelConfig(Section):
    """One RecBole model with what differs from `training`."""

    name: str = Field(min_length=1)
    class_path: str | None = None
    """A class of the user's own, `package.module:Class`: code execution, needs `--allow-code`."""
    layers: Literal["auto", "all"] | tuple[str, ...] | None = None
    """Taps by name; None: `transfer.layers`."""
    epochs: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    hyperparameters: dict[str, JsonValue] = {}
    """RecBole settings of this model, by RecBole's names."""
    controls: tuple[Arm, ...] | None = None
    """Control arms of this model, where not all of the study's are possible with it; None: the study's `controls`."""


class ScheduleConfig(Section):
    """When the transfer loss is on, and what is handed over."""

    kind: Literal["two_phase", "joint", "pretrain", "reversed"] = "two_phase"
    """`pretrain` has the transfer loss alone in phase 1: its alpha is 1, whatever `transfer.alphas` lists."""
    switch: float = Field(0.5, ge=0, le=1)
    """Share of the epochs that is phase 1: the first floor(switch * epochs)."""
    handover: Literal["last", "best_valid"] = "last"
    optimizer: Literal["keep", "reset"] = "reset"
    alpha: Literal["constant", "linear", "cosine", "step"] = "constant"
    freeze: dict[Literal["phase1", "phase2"], tuple[str, ...]] = {}
    """Parameters that stay fixed in a phase, by name patterns: {phase1: ["item_*"]}."""

    def phase1_epochs(self, epochs: int) -> int:
        """Returns how many of `epochs` are phase 1: floor(switch * epochs), all of them where there is no switch (`joint`)."""
        # 0.29 * 100 is 28.999999999999996: what the user wrote is 29.
        return epochs if self.kind == "joint" else math.floor(self.switch * epochs + 1e-9)


class TransferConfig(Section):
    """The knowledge transfer: where, how strong, which loss (METHOD.md, sections 1 and 5)."""

    layers: Literal["auto", "all"] | tuple[str, ...] | dict[str, Literal["auto", "all"] | tuple[str, ...]] = "auto"
    alphas: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(as_tuple)] = (0.3, 0.5, 0.7)
    claim_alpha: float = Field(0.5, gt=0, le=1)
    """The prespecified alpha of the claim: control twins run at it, and verdicts are about it."""
    loss: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(("mse",), min_length=1)
    projection: Literal["none", "student", "legacy_slice"] = "none"
    balance: Literal["none", "initial"] = "initial"
    weights: Literal["user", "row"] = "user"
    """What weighs equally in the transfer loss: every user, or every row of a batch, so that active users count more (trap 11)."""
    schedule: Annotated[tuple[ScheduleConfig, ...], BeforeValidator(as_tuple)] = Field((ScheduleConfig(),), min_length=1)

    @model_validator(mode="after")
    def _alphas(self) -> Self:
        if len(set(self.alphas)) != len(self.alphas):
            raise ValueError(f"alphas must differ from each other, but got {list(self.alphas)}")
        if 0 in self.alphas:
            raise ValueError("alpha 0 is the control arm `alpha0`: list it under `controls`, not under `alphas`")
        if self.alphas and self.claim_alpha not in self.alphas:
            raise ValueError(f"claim_alpha {self.claim_alpha:g} must be one of the alphas {list(self.alphas)}")
        return self

    def levels(self, schedule: ScheduleConfig) -> tuple[tuple[float, ...], float]:
        """Returns the alphas that a schedule is run at and the claim's: 1 where alpha does not matter (`pretrain`)."""
        return ((1.0,), 1.0) if schedule.kind == "pretrain" else (self.alphas, self.claim_alpha)


class TrainingConfig(Section):
    """Training settings shared by all models that do not name their own."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(2048, ge=1)
    learning_rate: float = Field(0.001, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    evaluate_every: int = Field(1, ge=1)
    """Epochs between evaluations on validation."""


class EvaluationConfig(Section):
    """What is measured, and what selects."""

    metrics: tuple[str, ...] = ("NDCG@10", "Recall@10", "Hit@10", "MRR@10")
    select_on: str = "NDCG@10"
    protocol: Literal["full", "paper_2024"] = "full"
    """`full`: all items are ranked; `paper_2024`: positives are ranked among sampled items, selection on pop20 and results on uni100."""
    references: tuple[str, ...] = ("Pop", "ItemKNN", "EASE")
    """Models without a layer, trained once a dataset, as lines in the report."""
    smallest_effect: float = Field(0.02, gt=0, lt=1)
    """Smallest effect of interest, relative."""

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if self.select_on not in self.metrics:
            raise ValueError(f"select_on {self.select_on!r} must be one of the metrics {list(self.metrics)}")
        return self


class SearchConfig(Section):
    """How settings are chosen: every level of a grid, or by Optuna inside each cell."""

    kind: Literal["grid", "optuna"] = "grid"
    sampler: Literal["tpe", "random", "qmc"] = "tpe"
    trials: int = Field(20, ge=1)
    """Suggested configurations a cell (optuna)."""
    round_size: int = Field(4, ge=1)
    """Suggestions made at once (optuna): they are in the ledger before they start and are told in order."""
    alpha: tuple[float, float] = (0.05, 0.95)
    """Range of alpha (optuna)."""
    objectives: Annotated[tuple[Literal["mean", "worst", "mean_minus_sd", "epochs"], ...], BeforeValidator(as_tuple)] = ("mean",)
    """Statistics over the seeds of a suggestion, of `evaluation.select_on` on validation; several make the search multi-objective.
    `epochs` is the cost: the mean number of epochs to the best one, minimised."""
    risk: float = Field(1.0, ge=0)
    """k of `mean_minus_sd`: mean - k sd."""
    storage: str | None = None
    """URL of an RDB that Optuna's tools read the search from; None: a journal file in the results folder."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        low, high = self.alpha
        if not 0 <= low < high <= 1:
            raise ValueError(f"the range of alpha must be [low, high] with 0 <= low < high <= 1, but got {list(self.alpha)}")
        if not self.objectives or len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives must be different and at least one, but got {list(self.objectives)}")
        if len(self.objectives) > 1 and self.sampler == "qmc":
            raise ValueError("sampler 'qmc' does not look at objectives: give one, or use 'tpe'")
        return self


class TuningConfig(Section):
    """Base hyper-parameters tuned once per (dataset, model), on the plain model and validation alone, then frozen for all arms."""

    trials: int = Field(0, ge=0)
    """Settings that are tried for each dataset and model, the study's own among them; 0: no tuning."""
    seeds: int = Field(1, ge=1)
    """Seeds that each of them is tried with; the mean counts."""
    ranges: dict[str, tuple[float, float]] = {"learning_rate": (1e-4, 1e-2)}
    """Setting to [low, high]: learning_rate, weight_decay or one of RecBole's; logarithmic where high is ten times low or more."""
    choices: dict[str, Annotated[tuple[JsonValue, ...], Field(min_length=1)]] = {}
    """Setting to the values that are tried: epochs, batch_size or one of RecBole's (embedding_size...)."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.trials == 1:
            raise ValueError("tuning.trials 1 tries the study's own settings only: set it to 0, or to 2 or more")
        for name, (low, high) in self.ranges.items():
            if not low < high:
                raise ValueError(f"tuning.ranges.{name} must be [low, high] with low < high, but got {[low, high]}")
        return self


class TaskResources(Section):
    """What one task asks of Ray."""

    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)


class ResourcesConfig(Section):
    """What trials and profile workers ask of Ray; CPU or GPU is this one setting."""

    trial: TaskResources = TaskResources()
    profiles: TaskResources = TaskResources()
    concurrency: int | None = Field(None, ge=1)
    """Trials at once at the most; None: what the cluster holds."""
    cpu_hour: float = Field(0.0, ge=0)
    """Price of one CPU for an hour, in any currency; for `budget.money` and the cost that `llmkt plan` states."""
    gpu_hour: float = Field(0.0, ge=0)
    """Price of one GPU for an hour, in the same currency."""


class BudgetConfig(Section):
    """A pilot: the most telling trials first, until this is spent; run again with more, the study goes on where it stopped."""

    trials: int | None = Field(None, ge=1)
    """Trials in all, over all runs of the study."""
    hours: float | None = Field(None, gt=0)
    """Hours of one run; trials that run at the end of them are finished."""
    money: float | None = Field(None, gt=0)
    """Money in all, over all runs: trial time at the prices under `resources`."""

    @property
    def is_set(self) -> bool:
        """Whether anything is limited."""
        return (self.trials, self.hours, self.money) != (None, None, None)


class TrackingConfig(Section):
    """Where a run can be watched beside its own progress, log and report."""

    tensorboard: bool = True
    """Whether each trial leaves TensorBoard files under `<results>/tensorboard`."""
    mlflow: str | None = None
    """An MLflow tracking URI (http://host:5000, sqlite:///file.db): each trial becomes a run of the experiment named after the study.
    Needs the package mlflow-skinny or mlflow; credentials belong in the environment (MLFLOW_TRACKING_TOKEN...)."""

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        if self.mlflow and re.search(r"://[^/?@]*:[^/?@]*@", self.mlflow):
            raise ValueError(
                "tracking.mlflow carries a password, which would end up in results; give MLFLOW_TRACKING_PASSWORD to the environment"
            )
        return self


NOT_IN_KEY = ("storage", "resources", "budget", "tracking", "description")
"""Sections of a study that change no number: where, how fast, how far and how watched it runs."""


class StudyConfig(Section):
    """A whole study."""

    name: str = Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(2026, ge=0, lt=2**31)
    description: str = ""
    compat: Literal["paper", "upstream_2024"] = "paper"
    """`paper`: the method as written; `upstream_2024`: what the published code does instead (METHOD.md, traps 1, 2, 3, 10, 11, 12)."""
    datasets: tuple[Annotated[DatasetConfig, BeforeValidator(as_named)], ...] = Field(min_length=1)
    profiles: tuple[ProfileConfig, ...] = Field((ProfileConfig(llm="template"),), min_length=1)
    embedding: Annotated[tuple[EmbeddingConfig, ...], BeforeValidator(as_tuple)] = Field((EmbeddingConfig(),), min_length=1)
    reduction: Annotated[tuple[ReductionConfig, ...], BeforeValidator(as_tuple)] = Field((ReductionConfig(),), min_length=1)
    models: tuple[Annotated[ModelConfig, BeforeValidator(as_named)], ...] = Field(min_length=1)
    transfer: TransferConfig = TransferConfig()
    controls: tuple[Arm, ...] = ("baseline", "alpha0", "shuffled")
    """Control arms of every treated cell (METHOD.md, section 4); a model may have `controls` of its own."""
    training: TrainingConfig = TrainingConfig()
    seeds: int = Field(2, ge=1, le=1000)
    evaluation: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    tuning: TuningConfig = TuningConfig()
    resources: ResourcesConfig = ResourcesConfig()
    budget: BudgetConfig = BudgetConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: str = Field("results", min_length=1)
    """Folder or URI under which `<name>/` (this study's results) and `artifacts/` (shared by all) are kept."""

    @model_validator(mode="before")
    @classmethod
    def _compat(cls, content: Any) -> Any:
        return as_upstream(content) if isinstance(content, dict) and content.get("compat") == "upstream_2024" else content

    @model_validator(mode="after")
    def _whole(self) -> Self:
        problems = []
        named: list[tuple[str, list[str]]] = [
            ("datasets", [d.name for d in self.datasets]),
            ("models", [m.name for m in self.models]),
            ("profiles", [p.label for p in self.profiles]),
            ("controls", list(self.controls)),
            *((f"controls of model {model.name!r}", [*map(str, model.controls)]) for model in self.models if model.controls is not None),
        ]
        for what, names in named:
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                problems.append(f"{what} must have different names, but {', '.join(map(repr, twice))} appear more than once")
        for model in self.models:
            epochs = model.epochs or self.training.epochs
            for schedule in self.transfer.schedule:
                first = schedule.phase1_epochs(epochs)
                if schedule.kind != "joint" and epochs < 2:
                    problems.append(f"model {model.name!r} has {epochs} epoch, but two phases need at least 2 epochs")
                elif schedule.kind != "joint" and not 0 < first < epochs:
                    problems.append(
                        f"switch {schedule.switch:g} of {epochs} epochs leaves model {model.name!r} without phase {2 if first else 1}; "
                        f"switch must be at least {1 / epochs:g} and below 1 there (for transfer throughout: kind joint)"
                    )
        if "mean_minus_sd" in self.search.objectives and self.seeds < 2:
            problems.append(f"objective 'mean_minus_sd' needs at least 2 seeds, but got {self.seeds}")
        if self.search.kind == "optuna" and not self.search.alpha[0] <= self.transfer.claim_alpha <= self.search.alpha[1]:
            problems.append(f"claim_alpha {self.transfer.claim_alpha:g} must lie in the searched range {list(self.search.alpha)} of alpha")
        if self.search.kind == "optuna" and any(schedule.kind == "pretrain" for schedule in self.transfer.schedule):
            problems.append("search.kind 'optuna' searches alpha, but schedule 'pretrain' has alpha 1 only: give it a study of its own")
        if self.search.kind == "optuna" and "://" in self.storage and self.search.storage is None:
            problems.append(
                f"storage {self.storage!r} is an object store, where Optuna's journal cannot live: give `search.storage` an RDB URL"
            )
        if self.budget.money is not None and not self.resources.cpu_hour and not self.resources.gpu_hour:
            problems.append("budget.money needs a price: give `resources.cpu_hour` or `resources.gpu_hour`")
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        return self

    def controls_of(self, model: ModelConfig) -> tuple[Arm, ...]:
        """Returns the control arms of a model's cells."""
        return self.controls if model.controls is None else model.controls

    @property
    def key(self) -> str:
        """The content key of what determines results: storage, resources, budget, tracking, description and the study's name do not."""
        content = self.model_dump(mode="json", exclude={*NOT_IN_KEY, "name"})
        return content_key(content)
