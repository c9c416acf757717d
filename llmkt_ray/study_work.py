"""What a study does, as sections of its file: models, transfer, training, evaluation, search, and what it may use up."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, JsonValue, ValidationError, field_validator, model_validator

from llmkt_ray.section import Section, as_tuple
from llmkt_ray.study_inputs import ProfileConfig

Arm = Literal[
    "baseline", "alpha0", "shuffled", "shuffled_strata", "gaussian", "constant",
    "template", "item_mean", "leaked", "input_init", "input_concat", "static_profile", "kar", "kar_treated",
]  # fmt: skip
"""A control arm of METHOD.md section 4; `treated` is not one: it is what the alphas make."""
ARMS: tuple[Arm, ...] = get_args(Arm)
PLAIN_ARMS = ("baseline", "alpha0")
"""Arms that know no profile at all."""
TABLE_ARMS = ("input_init", "input_concat")
"""The profile in the user table."""
KAR_ARMS = ("static_profile", "kar", "kar_treated")
"""Knowledge as feature fields of a context-aware model: the profile as it is, through KAR's adaptor, and that with transfer."""
INPUT_ARMS = (*TABLE_ARMS, "static_profile", "kar")
"""The paper's rivals: the profile as an input of the model, no transfer loss."""
OWN_TARGET_ARMS = ("template", "item_mean", "leaked")
"""Arms that transfer as the treated one does, from targets that are artifacts of their own."""


def _refuse_password(name: str, url: str | None, instead: str) -> None:
    # SQLAlchemy takes all up to the last @ as the password, slashes too; and drivers take one among a URL's options.
    if url and re.search("://[^:/]*:[^@]*@|[?&](password|passwd|pwd)=", url, re.IGNORECASE):
        raise ValueError(f"{name} carries a password, which would end up in results; {instead}")


OWN_SETTINGS = ("epochs", "batch_size", "learning_rate", "weight_decay")
"""Settings of a model that are the study's own, with the bounds of `training`; all others are RecBole's."""


def tried_of(varied: "SpaceConfig | TuningConfig") -> list[tuple[str, Any]]:
    """Returns the (setting, value) pairs of a search or of tuning that are known beforehand: choices, and the ends of ranges."""
    values: dict[str, Sequence[Any]] = {**varied.ranges, **varied.choices}
    return [(name, value) for name in (*sorted(varied.ranges), *sorted(varied.choices)) for value in values[name]]


def _check_varied(section: str, varied: "SpaceConfig | TuningConfig") -> None:
    """Refuses ranges and choices whose values a model could not take."""
    for name, (low, high) in varied.ranges.items():
        if not low < high:
            raise ValueError(f"{section}.ranges.{name} must be [low, high] with low < high, but got {[low, high]}")
        if name in ("epochs", "batch_size"):
            raise ValueError(f"{section}.ranges.{name}: a range holds fractions, {name} is a whole number; list its values in `choices`")
    both = sorted(set(varied.ranges) & set(varied.choices))
    if both:
        raise ValueError(f"a setting has either a range or choices, but {both} has both")
    for name, value in tried_of(varied):
        if name in OWN_SETTINGS:
            try:
                TrainingConfig.model_validate({name: value})
            except ValidationError as error:
                raise ValueError(f"{section} would try {name} {value!r}: {error.errors()[0]['msg']}") from None


class SpaceConfig(Section):
    """What a search varies of one model beside alpha and layer; the model's own settings are tried first, so they must lie inside."""

    ranges: dict[str, tuple[float, float]] = {}
    """Setting to [low, high]: learning_rate, weight_decay or one of RecBole's; logarithmic where high is ten times low or more."""
    choices: dict[str, Annotated[tuple[JsonValue, ...], Field(min_length=2)]] = {}
    """Setting to the values that are tried: batch_size or one of RecBole's."""

    @property
    def names(self) -> tuple[str, ...]:
        """The settings that are varied, in order."""
        return (*sorted(self.ranges), *sorted(self.choices))

    @model_validator(mode="after")
    def _settings(self) -> Self:
        _check_varied("search", self)
        if "epochs" in self.names:
            raise ValueError("epochs cannot be searched: suggestions would have different phases; list models of their own")
        return self


def class_path_problem(path: str) -> str | None:
    """Returns why a text is not the place of a class, `package.module:Class`, or None."""
    module, _, name = path.partition(":")
    if all(part.isidentifier() for part in (*module.split("."), name)):
        return None
    return f"model class {path!r} cannot be imported; the form is package.module:Class"


class ModelConfig(Section):
    """One RecBole model with what differs from `training`."""

    name: str = Field(min_length=1)
    class_path: str | None = None
    """A class of the user's own, `package.module:Class`: code execution, needs `--allow-code`. The source of its module is part of
    its trials' keys."""
    layers: Literal["auto", "all"] | tuple[str, ...] | None = None
    """Taps by name; None: `transfer.layers`."""
    epochs: int | None = Field(None, ge=1)
    evaluate_every: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    hyperparameters: dict[str, JsonValue] = {}
    """RecBole settings of this model, by RecBole's names."""
    search: SpaceConfig = SpaceConfig()
    """What a search (`search.kind: optuna`) varies of this model, for the treated arm and the baseline alike."""
    controls: tuple[Arm, ...] | None = None
    """Control arms of this model, where not all of the study's are possible with it; None: the study's `controls`."""

    @field_validator("class_path")
    @classmethod
    def _place_of_class(cls, path: str | None) -> str | None:
        problem = None if path is None else class_path_problem(path)
        if problem:
            raise ValueError(problem)
        return path


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

    @model_validator(mode="after")
    def _has_phase(self) -> Self:
        if self.kind == "joint" and self.freeze.get("phase2"):
            raise ValueError(
                f"freeze.phase2 {list(self.freeze['phase2'])} would freeze nothing: kind 'joint' has one phase; say `phase1`, or use kind "
                "two_phase, pretrain or reversed"
            )
        return self

    def phase1_epochs(self, epochs: int) -> int:
        """Returns how many of `epochs` are phase 1: floor(switch * epochs), all of them where there is no switch (`joint`)."""
        # 0.29 * 100 is 28.999999999999996: what the user wrote is 29.
        return epochs if self.kind == "joint" else math.floor(self.switch * epochs + 1e-9)

    @staticmethod
    def smallest_switch(epochs: int) -> float:
        """Returns a switch at which one of `epochs` is phase 1, rounded UP for messages: 0.3333 of 3 epochs would give none."""
        return math.ceil(1e4 / epochs) / 1e4


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


class AdaptorConfig(Section):
    """KAR's hybrid-expert adaptor (arXiv 2306.10933, section 4.3); the paper gives no sizes that hold everywhere, these are ours."""

    shared_experts: int = Field(2, ge=1)
    """Experts that read preference and item knowledge alike."""
    own_experts: int = Field(2, ge=1)
    """Experts of each of the two kinds of knowledge."""
    hidden: int = Field(128, ge=1)
    """Width of an expert's hidden layer; its output is as wide as the model's feature embeddings."""


class KarConfig(Section):
    """KAR, the rival of context-aware models: what its item knowledge is written by, and its adaptor."""

    items: ProfileConfig = ProfileConfig(llm="template")
    """Who writes the item knowledge texts: as under `profiles`; a `file` has columns item_id and text."""
    adaptor: AdaptorConfig = AdaptorConfig()


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
    protocol: Literal["full", "labelled", "paper_2024"] = "full"
    """`full`: all items are ranked; `labelled`: positives are told from negatives among rated rows (AUC, LogLoss, GAUC), no negatives
    are drawn; `paper_2024`: positives are ranked among sampled items, selection on pop20 and results on uni100."""
    references: tuple[str, ...] = ("Pop", "ItemKNN", "EASE")
    """Models without a layer, trained once a dataset, as lines in the report."""
    smallest_effect: float = Field(0.02, gt=0, lt=1)
    """Smallest effect of interest, relative."""

    @model_validator(mode="before")
    @classmethod
    def _of_protocol(cls, content: Any) -> Any:
        """The reference lines rank and know no probabilities: under `labelled` there are none unless the study names some."""
        labelled = isinstance(content, dict) and content.get("protocol") == "labelled"
        return {"metrics": ("AUC", "LogLoss", "GAUC"), "select_on": "AUC", "references": (), **content} if labelled else content

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if self.select_on not in self.metrics:
            raise ValueError(f"select_on {self.select_on!r} must be one of the metrics {list(self.metrics)}")
        return self


class EarlyStoppingConfig(Section):
    """Which suggestions of a search are not trained to the end: successive halving, judged in phase 2 alone."""

    grace_epochs: int = Field(1, ge=1)
    """Epochs of phase 2 before the first rung; each further rung is `factor` times as far."""
    factor: int = Field(3, ge=2)
    """One in so many suggestions is trained beyond a rung."""


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
    early_stopping: EarlyStoppingConfig | None = None
    """Ends suggestions that are behind those of earlier rounds at the same epoch of phase 2; None: all are trained to the end."""
    storage: str | None = None
    """URL of an RDB that Optuna's tools read the search from, without its password; None: a journal file in the results folder."""

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        instead = "leave it out of the URL and give it to the database's driver (for PostgreSQL PGPASSWORD or ~/.pgpass)"
        _refuse_password("search.storage", self.storage, instead)
        return self

    @model_validator(mode="after")
    def _range(self) -> Self:
        low, high = self.alpha
        if not 0 <= low < high <= 1:
            raise ValueError(f"the range of alpha must be [low, high] with 0 <= low < high <= 1, but got {list(self.alpha)}")
        if not self.objectives or len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives must be different and at least one, but got {list(self.objectives)}")
        if len(self.objectives) > 1 and self.sampler == "qmc":
            raise ValueError("sampler 'qmc' does not look at objectives: give one, or use 'tpe'")
        if self.early_stopping and (self.kind != "optuna" or self.objectives != ("mean",)):
            raise ValueError(
                "early_stopping ends suggestions of a search that are behind on validation: it needs kind optuna and objectives ['mean'], "
                f"but got kind {self.kind!r} and objectives {list(self.objectives)}; a grid's trials are all results"
            )
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
        _check_varied("tuning", self)
        return self


class TaskResources(Section):
    """What one task asks of Ray."""

    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)


class LlmPrice(Section):
    """What one LLM choice costs by the token, and how fast it is."""

    prompt: float = Field(0.0, ge=0)
    """Price of a million prompt tokens."""
    output: float = Field(0.0, ge=0)
    """Price of a million output tokens."""
    tokens_per_s: float | None = Field(None, gt=0)
    """Prompt and output tokens that one engine handles a second; None: as measured where this model wrote profiles in this storage."""


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
    llm: dict[str, LlmPrice] = {}
    """Label of an entry under `profiles` to its prices, for `llmkt plan`, `budget.money` and the report."""


class BudgetConfig(Section):
    """A pilot: the most telling trials first, until this is spent; run again with more, the study goes on where it stopped."""

    trials: int | None = Field(None, ge=1)
    """Trials in all, over all runs of the study."""
    hours: float | None = Field(None, gt=0)
    """Hours of one run; trials that run at the end of them are finished."""
    money: float | None = Field(None, gt=0)
    """Money in all, over all runs: trial time, engines and tokens at the prices under `resources`."""
    llm_tokens: int | None = Field(None, ge=1)
    """Prompt and output tokens in all, over all runs and LLM choices; generation stops within a block and goes on with a larger budget."""

    @property
    def is_set(self) -> bool:
        """Whether anything is limited."""
        return (self.trials, self.hours, self.money, self.llm_tokens) != (None, None, None, None)


class TrackingConfig(Section):
    """Where a run can be watched beside its own progress, log and report."""

    tensorboard: bool = True
    """Whether each trial leaves TensorBoard files under `<results>/tensorboard`."""
    mlflow: str | None = None
    """An MLflow tracking URI (http://host:5000, sqlite:///file.db): each trial becomes a run of the experiment named after the study.
    Needs the package mlflow-skinny or mlflow; credentials belong in the environment (MLFLOW_TRACKING_TOKEN...)."""

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        _refuse_password("tracking.mlflow", self.mlflow, "give MLFLOW_TRACKING_PASSWORD to the environment")
        return self
