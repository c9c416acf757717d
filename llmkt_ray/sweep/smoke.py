"""A study cut down to seconds: the same parts on ml-100k, with what is not at hand replaced, and every replacement said.

No LLM is asked in a smoke run, here or elsewhere: its profiles are the template's. Studies that differ in nothing that the
first stages read share their artifacts, so that the smoke runs of many studies encode and reduce once.
"""

from collections.abc import Sequence
from typing import Any

from llmkt_ray.embeddings.encoders import encoder_identity
from llmkt_ray.errors import LlmktError
from llmkt_ray.seeds import content_key
from llmkt_ray.study import (
    KAR_ARMS,
    Arm,
    DatasetConfig,
    EmbeddingConfig,
    KarConfig,
    ModelConfig,
    ProfileConfig,
    ResourcesConfig,
    ScheduleConfig,
    SplitRule,
    StudyConfig,
    TrainingConfig,
    TransferConfig,
    TuningConfig,
)

TRIALS = 4
"""Trials of a smoke run at the most."""
EPOCHS = 2
LONGEST_NAME = 80
"""Letters that a study's name may have."""
DATASET = "ml-100k"
ATTRIBUTES = ("genres", "year")
"""Fields of its items that S3Rec can learn from."""
AT_MOST = {"NCL": {"num_clusters": 100}, "RaCT": {"pretrain_epochs": EPOCHS}, "S3Rec": {"pretrain_epochs": EPOCHS}}
"""By model, settings that would outlast the epochs, or of which the dataset may not have enough, and the most that is kept."""


def smoke_study(study: StudyConfig) -> tuple[StudyConfig, tuple[str, ...]]:
    """Returns the study cut down to ml-100k, 2 epochs and 1 seed, in a results folder of its own, and what was replaced, in sentences."""
    said: list[str] = []
    dataset = _dataset(study, said)
    models = tuple(_model(model, said) for model in study.models)
    update: dict[str, Any] = {
        "name": _name(study.name),
        "datasets": (dataset,),
        "profiles": _profiles(study, dataset, said),
        "embedding": _encoders(study, said),
        "models": models,
        "training": TrainingConfig(**{**study.training.model_dump(), "epochs": EPOCHS, "evaluate_every": 1}),
        "transfer": _halved(study.transfer, said),
        "seeds": 1,
        "search": study.search.model_copy(update={"trials": 1, "round_size": 1, "objectives": ("mean",)}),
        "resources": _resources(study, said),
        "kar": _kar(study, said),
    }
    if study.tuning.trials:
        said.append("no hyper-parameters are tuned: the study's own are used")
        update["tuning"] = TuningConfig()
    update |= _controls(study, models, said)
    return study.model_copy(update=update), tuple(said)


def _name(name: str) -> str:
    """Returns the name of a study's smoke run; of a long one the beginning, and a digest that keeps it apart from all others."""
    short = name if len(name) <= LONGEST_NAME - len("-smoke") else f"{name[: LONGEST_NAME - 13]}-{content_key(name, 6)}"
    return f"{short}-smoke"


def _model(model: ModelConfig, said: list[str]) -> ModelConfig:
    own = model.hyperparameters
    replaced: dict[str, Any] = {}
    for name, most in (AT_MOST.get(model.name, {}) if model.class_path is None else {}).items():
        given = own.get(name)
        if not isinstance(given, int) or given > most:
            replaced[name] = most
    if model.name == "S3Rec" and own.get("item_attribute", ATTRIBUTES[0]) not in ATTRIBUTES:
        replaced["item_attribute"] = ATTRIBUTES[0]
    if replaced:
        said.append(f"model {model.name!r} has {', '.join(f'{name} {value!r}' for name, value in replaced.items())}")
    return model.model_copy(update={"epochs": EPOCHS, "evaluate_every": None, "hyperparameters": {**own, **replaced}})


def _controls(study: StudyConfig, given: Sequence[ModelConfig], said: list[str]) -> dict[str, Any]:
    """Returns the study's controls and those of the models `given` without the one that template profiles leave no room for."""
    models = [model for model in given if model.controls and "template" in model.controls]
    if "template" not in study.controls and not models:
        return {}
    said.append("control 'template' left out: in a smoke run the profiles are the template")

    def without(arms: tuple[Arm, ...] | None) -> tuple[Arm, ...] | None:
        return None if arms is None else tuple(arm for arm in arms if arm != "template")

    kept = tuple(model.model_copy(update={"controls": without(model.controls)}) for model in given)
    return {"controls": without(study.controls), "models": kept}


def _dataset(study: StudyConfig, said: list[str]) -> DatasetConfig:
    known = next((d for d in study.datasets if d.name == DATASET and d.path is None), None)
    if known is not None:
        left_out = [d.name for d in study.datasets if d is not known]
        if left_out:
            said.append(f"left out: dataset {', '.join(map(repr, left_out))}")
        return known.model_copy(update={"train_share": known.train_share[:1], "split": known.split.model_copy(update={"repetitions": 1})})
    first = study.datasets[0]
    said.append(f"dataset {', '.join(repr(d.name) for d in study.datasets)} replaced by {DATASET!r}")
    rule = first.positive if first.positive.rating_at_least is not None else first.positive.model_copy(update={"rating_at_least": 4.0})
    kind = first.split.kind if first.split.kind in ("leave_one_out", "time") else "random"
    return DatasetConfig(name=DATASET, positive=rule, split=SplitRule(kind=kind))


def _profiles(study: StudyConfig, dataset: DatasetConfig, said: list[str]) -> tuple[ProfileConfig, ...]:
    """Returns the profiles that need no LLM; a file's only where it was written for the dataset that stays."""
    stays = dataset.name in {d.name for d in study.datasets}
    kept = [p for p in study.profiles if p.llm == "template" or (p.llm == "file" and stays and len(study.datasets) == 1)]
    replaced = [p.label for p in study.profiles if p not in kept]
    if replaced:
        said.append(f"profiles {', '.join(map(repr, replaced))} replaced by {'template'!r}: a smoke run asks no LLM")
    return tuple(kept) or (ProfileConfig(llm="template"),)


def _kar(study: StudyConfig, said: list[str]) -> KarConfig:
    """Returns KAR with item texts that need no LLM."""
    if study.kar.items.llm == "template":
        return study.kar
    if any(arm in KAR_ARMS for arm in study.arms):
        said.append(f"item texts of {study.kar.items.label!r} replaced by {'template'!r}: a smoke run asks no LLM")
    return study.kar.model_copy(update={"items": ProfileConfig(llm="template")})


def _encoders(study: StudyConfig, said: list[str]) -> tuple[EmbeddingConfig, ...]:
    kept: list[EmbeddingConfig] = []
    left_out: list[EmbeddingConfig] = []
    for encoder in study.embedding:
        (kept if _is_at_hand(encoder) else left_out).append(encoder)
    if left_out:
        instead = "left out" if kept else f"replaced by {EmbeddingConfig().encoder!r}"
        said.append(f"encoder {', '.join(repr(e.encoder) for e in left_out)} {instead}: not at hand on this machine")
    return tuple(kept) or (EmbeddingConfig(),)


def _is_at_hand(encoder: EmbeddingConfig) -> bool:
    """Says whether an encoder runs here without asking anybody."""
    if encoder.via != "local":
        return False
    try:
        encoder_identity(encoder)
    except LlmktError:
        return False
    return True


def _halved(transfer: TransferConfig, said: list[str]) -> TransferConfig:
    """Returns the transfer with every switch in the middle: two epochs have no other, and schedules that are now the same once."""
    schedules: list[ScheduleConfig] = []
    for schedule in transfer.schedule:
        halved = schedule if schedule.kind == "joint" else schedule.model_copy(update={"switch": 0.5})
        if halved not in schedules:
            schedules.append(halved)
    if tuple(schedules) != transfer.schedule:
        said.append("every switch is 0.5: two epochs have no other")
    return transfer.model_copy(update={"schedule": tuple(schedules)})


def _resources(study: StudyConfig, said: list[str]) -> ResourcesConfig:
    plain = ResourcesConfig()
    asked = study.resources
    if (asked.trial, asked.profiles) != (plain.trial, plain.profiles):
        said.append("trials and profile workers run on one CPU each")
    return asked.model_copy(update={"trial": plain.trial, "profiles": plain.profiles})
