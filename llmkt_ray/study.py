"""The study file: one YAML is one study, as frozen pydantic models with unknown keys forbidden.

Reading here is schema only: types, ranges and what contradicts itself inside the file. Names (models, layers,
metrics, encoders) and the data are checked afterwards by the stages that own them; `llmkt check` does all three.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator

from llmkt_ray.compat import as_upstream
from llmkt_ray.errors import unknown_name
from llmkt_ray.section import Section, as_named, as_tuple
from llmkt_ray.seeds import content_key
from llmkt_ray.study_inputs import (
    LANGUAGE_MODELS,
    DatasetConfig,
    EmbeddingConfig,
    FilterRule,
    PositiveRule,
    ProfileConfig,
    ReductionConfig,
    SplitRule,
)
from llmkt_ray.study_work import (
    ARMS,
    INPUT_ARMS,
    KAR_ARMS,
    OWN_TARGET_ARMS,
    PLAIN_ARMS,
    TABLE_ARMS,
    AdaptorConfig,
    Arm,
    BudgetConfig,
    EarlyStoppingConfig,
    EvaluationConfig,
    KarConfig,
    LlmPrice,
    ModelConfig,
    ResourcesConfig,
    ScheduleConfig,
    SearchConfig,
    SpaceConfig,
    TaskResources,
    TrackingConfig,
    TrainingConfig,
    TransferConfig,
    TuningConfig,
)

__all__ = [
    "ARMS", "INPUT_ARMS", "KAR_ARMS", "LANGUAGE_MODELS", "NOT_IN_KEY", "OWN_TARGET_ARMS",
    "PLAIN_ARMS", "TABLE_ARMS", "AdaptorConfig", "Arm", "BudgetConfig", "DatasetConfig", "EarlyStoppingConfig",
    "EmbeddingConfig", "EvaluationConfig", "FilterRule", "KarConfig", "LlmPrice", "ModelConfig", "PositiveRule",
    "ProfileConfig", "ReductionConfig", "ResourcesConfig", "ScheduleConfig", "SearchConfig", "SpaceConfig",
    "SplitRule", "StudyConfig", "TaskResources", "TrackingConfig", "TrainingConfig", "TransferConfig",
    "TuningConfig",
]  # fmt: skip

NOT_IN_KEY = ("storage", "resources", "budget", "tracking", "description")
"""Sections of a study that change no number: where, how fast, how far and how watched it runs."""
PACE = ("requests_per_minute", "concurrency", "timeout_s", "workers", "api_key_env")
"""Settings of who writes texts and of encoders that change no number either: how fast they are asked, and where the key is found."""


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
    kar: KarConfig = KarConfig()
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

    @field_validator("storage")
    @classmethod
    def _plain_folder(cls, storage: str) -> str:
        """`file:///shared` is the folder /shared: a disk that this machine may or may not see, and no object store."""
        uri = urlsplit(storage)
        if uri.scheme == "file":
            if uri.netloc or not uri.path.startswith("/"):
                raise ValueError("a folder as a URI has three slashes (file:///shared/folder)")
            return unquote(uri.path)
        if re.match(r"\w+:/[^/]", storage):
            raise ValueError("a URI has two slashes (s3://bucket/prefix)")
        try:  # ~ is the home folder, as in every other path of a study
            return str(Path(storage).expanduser()) if storage.startswith("~") else storage
        except RuntimeError as error:
            raise ValueError(f"there is no such home folder ({error})") from error

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
            ("embeddings", [e.label for e in self.embedding]),
            ("reductions", [f"{r.label} to {r.dims}" for r in self.reduction]),
            ("controls", list(self.controls)),
            *((f"controls of model {model.name!r}", [*map(str, model.controls)]) for model in self.models if model.controls is not None),
        ]
        for what, names in named:
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                problems.append(f"{what} must have different names, but {', '.join(map(repr, twice))} appear more than once")
        problems += self._same_reductions()
        for model in self.models:
            for epochs in self._epochs_of(model):
                tried = "" if epochs == (model.epochs or self.training.epochs) else " (tried by tuning)"
                for schedule in self.transfer.schedule:
                    first = schedule.phase1_epochs(epochs)
                    if schedule.kind != "joint" and epochs < 2:
                        problems.append(f"model {model.name!r} has {epochs} epoch{tried}, but two phases need at least 2 epochs")
                    elif schedule.kind != "joint" and not 0 < first < epochs:
                        problems.append(
                            f"switch {schedule.switch:g} of {epochs} epochs{tried} leaves model {model.name!r} without phase "
                            f"{2 if first else 1}; switch must be at least {schedule.smallest_switch(epochs):g} and below 1 there "
                            "(for transfer throughout: kind joint)"
                        )
            if model.search.names and self.search.kind != "optuna":
                problems.append(f"model {model.name!r} has a `search`, but search.kind is 'grid': set that to 'optuna'")
            problems += [f"model {model.name!r}: {problem}" for problem in (*self._outside(model), *self._tuned_outside(model))]
        if "mean_minus_sd" in self.search.objectives and self.seeds < 2:
            problems.append(f"objective 'mean_minus_sd' needs at least 2 seeds, but got {self.seeds}")
        if self.search.kind == "optuna" and not self.search.alpha[0] <= self.transfer.claim_alpha <= self.search.alpha[1]:
            problems.append(f"claim_alpha {self.transfer.claim_alpha:g} must lie in the searched range {list(self.search.alpha)} of alpha")
        if self.search.kind == "optuna" and any(schedule.kind == "pretrain" for schedule in self.transfer.schedule):
            problems.append("search.kind 'optuna' searches alpha, but schedule 'pretrain' has alpha 1 only: give it a study of its own")
        if self.journal_problem:
            problems.append(self.journal_problem)
        if self.search.early_stopping is not None:
            problems += self._unfair_stopping(self.search.early_stopping)
        if self.search.kind == "optuna" and self.evaluation.select_on == "LogLoss":
            problems.append("a search maximises what it selects on, but of LogLoss less is better; set evaluation.select_on to AUC or GAUC")
        if self.budget.money is not None and not self.resources.cpu_hour and not self.resources.gpu_hour and not self.resources.llm:
            problems.append(
                "budget.money needs a price: give `resources.cpu_hour` or `resources.gpu_hour`, or prices under `resources.llm`"
            )
        labels = [entry.label for entry in self.profiles]
        problems += [unknown_name("resources.llm entry", label, labels) for label in self.resources.llm if label not in labels]
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        return self

    def _epochs_of(self, model: ModelConfig) -> tuple[int, ...]:
        """Returns the numbers of epochs that a model may be trained for: its own, and those that tuning tries."""
        tuned = self.tuning.choices.get("epochs", ()) if self.tuning.trials else ()
        return tuple(dict.fromkeys((model.epochs or self.training.epochs, *(int(float(str(epochs))) for epochs in tuned))))

    @property
    def journal_problem(self) -> str | None:
        """Why the journal of a search cannot lie in this storage, or None."""
        if self.search.kind != "optuna" or "://" not in self.storage or self.search.storage is not None:
            return None
        return f"storage {self.storage!r} is an object store, where Optuna's journal cannot live: give `search.storage` an RDB URL"

    def setting(self, model: ModelConfig, name: str) -> JsonValue:
        """Returns a setting of a model by name, its own or RecBole's; None where neither the model nor `training` has it."""
        own: dict[str, JsonValue] = {
            "batch_size": model.batch_size or self.training.batch_size,
            "learning_rate": model.learning_rate or self.training.learning_rate,
            "weight_decay": self.training.weight_decay if model.weight_decay is None else model.weight_decay,
        }
        return own[name] if name in own else model.hyperparameters.get(name)

    def _outside(self, model: ModelConfig) -> Iterator[str]:
        """Yields the searched settings whose default, which is tried first, is not known or not inside."""
        for name in model.search.names:
            value = self.setting(model, name)
            if value is None:
                yield f"search varies {name!r}, whose default is not known here; give it under `hyperparameters`: it is tried first"
            elif name in model.search.ranges:
                low, high = model.search.ranges[name]
                if not isinstance(value, int | float) or not low <= value <= high:
                    yield f"the default of {name!r}, {value!r}, is tried first and must lie in its range {[low, high]}"
            elif value not in model.search.choices[name]:
                yield f"the default of {name!r}, {value!r}, is tried first and must be one of {list(model.search.choices[name])}"

    def _tuned_outside(self, model: ModelConfig) -> Iterator[str]:
        """Yields the settings that are tuned and searched, where tuning might choose what the search cannot try first."""
        tuning, search = self.tuning, model.search
        for name in search.names if tuning.trials else ():
            tried = tuning.ranges.get(name) or tuning.choices.get(name, ())
            if name in search.ranges:
                low, high = search.ranges[name]
                is_inside, allowed = all(isinstance(v, int | float) and low <= v <= high for v in tried), f"lie in its range {[low, high]}"
            else:
                is_inside = name not in tuning.ranges and all(value in search.choices[name] for value in tried)
                allowed = f"be one of {list(search.choices[name])}"
            if not is_inside:
                yield (
                    f"tuning tries {name!r} in {list(tried)}, but what it chooses is what the search tries first and must {allowed}; "
                    f"leave {name!r} out of `tuning` or of the model's `search`, or let both have the same values"
                )

    def _same_reductions(self) -> Iterator[str]:
        """Yields reducers of other names whose targets are the same: standardising the principal components whitens them."""
        for plain in self.reduction:
            if plain.method == "pca" and plain.standardize and plain.model_copy(update={"method": "pca_whiten"}) in self.reduction:
                yield (
                    f"reductions 'pca' and 'pca_whiten' to {plain.dims} are the same target once each dimension is standardised; leave one "
                    "out, or set standardize: false for 'pca', which keeps its dimensions' own variances"
                )

    def _unfair_stopping(self, stopping: EarlyStoppingConfig) -> Iterator[str]:
        """Yields why trials of this study cannot be judged by an epoch of phase 2 against each other."""
        schedules = self.transfer.schedule
        if self.seeds > 1:
            yield (
                f"search.early_stopping judges single trials, but a suggestion is the mean over {self.seeds} seeds: ending one would "
                "leave a mean of others; set seeds to 1, or leave early_stopping out"
            )
        if any(schedule.kind == "joint" or schedule.switch == 1 for schedule in schedules):
            yield (
                "search.early_stopping judges phase 2 alone, but with schedule 'joint' or switch 1.0 there is none; give it a switch below "
                "1, or leave early_stopping out"
            )
        switches = sorted({schedule.switch for schedule in schedules})
        if len(switches) > 1:
            yield (
                f"search.early_stopping compares equal epochs of phase 2, but the schedules have switches {switches}: a later one would "
                "always look better at a rung; give each switch a study of its own, or leave early_stopping out"
            )
        rarest = max(model.evaluate_every or self.training.evaluate_every for model in self.models)
        if stopping.grace_epochs < rarest:
            yield (
                f"search.early_stopping.grace_epochs {stopping.grace_epochs} must be at least evaluate_every {rarest}: before that "
                "nothing is known on validation"
            )
        if len(switches) > 1 or any(schedule.kind == "joint" for schedule in schedules):
            return
        for model, epochs in [(each, epochs) for each in self.models for epochs in self._epochs_of(each)]:
            left = epochs - schedules[0].phase1_epochs(epochs)
            if 0 < left <= stopping.grace_epochs:
                yield (
                    f"search.early_stopping.grace_epochs {stopping.grace_epochs} leaves nothing to stop: phase 2 of {model.name} has "
                    f"{left} of {epochs} epochs; give it less than {left}, train longer, or leave early_stopping out"
                )

    def controls_of(self, model: ModelConfig) -> tuple[Arm, ...]:
        """Returns the control arms of a model's cells."""
        return self.controls if model.controls is None else model.controls

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every control arm that some model of the study has."""
        return tuple(dict.fromkeys(arm for model in self.models for arm in self.controls_of(model)))

    @property
    def key(self) -> str:
        """The content key of what determines results: storage, resources, budget, tracking, description and the study's name do not.

        Nor does `kar` where no arm reads it, nor `search.storage`, nor what `PACE` names.
        """
        unread = () if any(arm in KAR_ARMS for arm in self.arms) else ("kar",)
        update = {
            "profiles": tuple(_at_default(profiles, PACE) for profiles in self.profiles),
            "embedding": tuple(_at_default(embedding, PACE) for embedding in self.embedding),
            "kar": self.kar.model_copy(update={"items": _at_default(self.kar.items, PACE)}),
            "search": _at_default(self.search, ("storage",)),
        }
        content = self.model_copy(update=update).model_dump(mode="json", exclude={*NOT_IN_KEY, "name", *unread})
        return content_key(content)


def _at_default(section: Section, names: Iterable[str]) -> Section:
    """Returns a section with those of the fields that it has at their defaults."""
    kinds = type(section).model_fields
    return section.model_copy(update={name: kinds[name].default for name in names if name in kinds})
