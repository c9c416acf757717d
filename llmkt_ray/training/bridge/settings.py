"""RecBole's settings of one model, without RecBole's `Config`.

`Config` parses the process's command line, runs `eval` on every string, sets CUDA_VISIBLE_DEVICES and patches numpy.
None of this is wanted in a trial, so the same property files are read here, with a safe YAML loader, into the
mapping that models ask.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
import yaml

from llmkt_ray.errors import TrainingError, unknown_name
from llmkt_ray.training.bridge.registry import ModelEntry
from llmkt_ray.training.bridge.shims import recbole_folder

OWNED: dict[str, str] = {
    "epochs": "epochs", "train_batch_size": "batch_size", "learning_rate": "learning_rate", "weight_decay": "weight_decay",
    "learner": "none: it is Adam", "eval_step": "evaluate_every", "stopping_step": "none: patience is off",
    "metrics": "evaluation.metrics", "topk": "evaluation.metrics", "valid_metric": "evaluation.select_on", "seed": "seed",
    "eval_args": "evaluation.protocol", "gpu_id": "resources", "use_gpu": "resources", "device": "resources",
    "data_path": "datasets.path", "checkpoint_dir": "storage", "load_col": "datasets", "threshold": "datasets.positive",
    "train_stage": "none: a trial has all stages", "pre_model_path": "none: stages hand over in the trial",
    "save_step": "none: stages hand over in the trial",
}  # fmt: skip
"""RecBole's settings that belong to the study, and the key of the study that holds them."""


_DEFAULTS: dict[str, dict[str, Any]] = {"S3Rec": {"item_attribute": "genres"}}
"""Settings whose default in RecBole names a field of its own files: `class` is what ML-100k's genres are called there."""


class _Loader(yaml.SafeLoader):
    """A safe loader that reads 1e-05 as a number, as RecBole's files mean it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9_]+(?:[eE][-+]?[0-9]+)?)$"),
    list("-+0123456789."),
)


class Settings(Mapping[str, Any]):
    """The mapping that RecBole's models and datasets read: an absent key is None, as in RecBole's `Config`."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.final_config_dict = values

    def __getitem__(self, key: str) -> Any:
        return self.final_config_dict.get(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self.final_config_dict[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self.final_config_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self.final_config_dict)

    def __len__(self) -> int:
        return len(self.final_config_dict)

    def __getattr__(self, key: str) -> Any:
        if key == "final_config_dict" or key not in self.final_config_dict:
            raise AttributeError(f"no setting {key!r}")
        return self.final_config_dict[key]


@cache
def _properties(file: str) -> dict[str, Any]:
    """Returns one of RecBole's property files, empty where there is none."""
    path = recbole_folder() / "properties" / file
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {} if path.is_file() else {}  # noqa: S506 - a SafeLoader


def hyperparameter_problems(model: str, hyperparameters: Mapping[str, Any], *, own_class: bool = False) -> list[str]:
    """Returns a sentence for each hyper-parameter that `model` does not have or that belongs to the study."""
    known = _properties(f"model/{model}.yaml").keys() | {"train_neg_sample_args", "require_pow", "MAX_ITEM_LIST_LENGTH"}
    problems = []
    for name in hyperparameters:
        if name in OWNED:
            problems.append(f"hyper-parameter {name!r} of {model} belongs to the study; set there: {OWNED[name]}")
        elif name not in known and not own_class:
            problems.append(unknown_name(f"hyper-parameter of {model}", name, known))
    if model == "DMF" and hyperparameters.get("inter_matrix_type", "01") != "01":
        problems.append(
            f"inter_matrix_type {hyperparameters['inter_matrix_type']!r} of DMF learns from ratings, but models learn from positives here; "
            "leave it out, or set it to '01'"
        )
    return problems


_ALLOWED_NEGATIVES = {
    "sample_num": "a whole number from 1",
    "distribution": "'uniform' or 'popularity'",
    "alpha": "a number above 0, the exponent of popularity",
    "dynamic": "true or false",
    "candidate_num": "a whole number from 1, with dynamic: true",
}
"""The keys of `train_neg_sample_args`, by RecBole's names, and their values."""


def negatives_problem(hyperparameters: Mapping[str, Any], entry: ModelEntry) -> str | None:
    """Returns what is wrong with the negative samples that are asked for, or None: nothing is left out of account in silence."""
    name = "train_neg_sample_args"
    if name not in hyperparameters:
        return None
    given = hyperparameters[name]
    if entry.batches in ("users", "reference"):
        return f"{entry.name} draws no negatives, so hyper-parameter {name!r} would have no effect; leave it out"
    if not isinstance(given, Mapping):
        allowed = "; ".join(f"{key}: {values}" for key, values in _ALLOWED_NEGATIVES.items())
        return f"hyper-parameter {name!r} of {entry.name} must be a mapping, but got {given!r}; allowed are {allowed}"
    for key in given:
        if key not in _ALLOWED_NEGATIVES:
            return unknown_name(f"key of {name} of {entry.name}", str(key), _ALLOWED_NEGATIVES)
    chosen = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0} | dict(given)
    count, candidates, alpha, dynamic = (chosen[key] for key in ("sample_num", "candidate_num", "alpha", "dynamic"))
    popularity = chosen["distribution"] == "popularity"
    valid = {
        "sample_num": is_count(count),
        "distribution": chosen["distribution"] in ("uniform", "popularity"),
        "alpha": not isinstance(alpha, bool) and isinstance(alpha, (int, float)) and 0 < alpha < math.inf,
        "dynamic": isinstance(dynamic, bool),
        "candidate_num": is_count(candidates) if dynamic else candidates == 0,
    }
    for key, is_valid in valid.items():
        if not is_valid:
            return f"{name} of {entry.name} asks for {key}: {chosen[key]!r}; allowed is {_ALLOWED_NEGATIVES[key]}"
    if alpha != 1 and not popularity:
        return f"{name} of {entry.name} asks for alpha: {alpha:g}, which has no effect on uniform negatives; set distribution: popularity"
    if entry.batches == "sequences" and (count > 1 or popularity or dynamic):
        return (
            f"{name} of {entry.name} asks for {dict(given)}, but sequential models draw 1 uniform negative (loss_type BPR) or none (CE); "
            "leave it out"
        )
    if dynamic and entry.family == "context":
        return (
            f"{name} of {entry.name} asks for dynamic: True, but RecBole scores the candidates of context-aware models with the features "
            "of the positive item; leave it out"
        )
    return None


def is_count(value: Any) -> bool:
    """Says whether a setting is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def make_settings(
    model: str,
    *,
    family: str,
    hyperparameters: Mapping[str, Any],
    dataset: str,
    device: str,
    own_class: bool = False,
) -> Settings:
    """Returns the settings of one model: RecBole's defaults, then its model file, then `hyperparameters`.

    Args:
        model: RecBole's name of the model, or the name of the user's own class.
        family: "general", "context" or "sequential".
        hyperparameters: by RecBole's names; strings stay strings, nothing is evaluated.
        dataset: name of the dataset.
        device: "cpu" or "cuda".
        own_class: the model is not RecBole's: any hyper-parameter is allowed.

    Raises:
        TrainingError: a hyper-parameter is unknown, or belongs to the study.
    """
    problems = hyperparameter_problems(model, hyperparameters, own_class=own_class)
    if problems:
        raise TrainingError("; ".join(problems))
    values = dict(_properties("overall.yaml")) | _properties(f"model/{model}.yaml") | _properties("dataset/sample.yaml")
    values |= _DEFAULTS.get(model, {})
    negatives = dict(_properties("overall.yaml")["train_neg_sample_args"])
    values |= hyperparameters
    chosen = values.get("train_neg_sample_args") or negatives
    values["train_neg_sample_args"] = negatives | dict(chosen)
    values |= {
        "model": model,
        "dataset": dataset,
        "device": torch.device(device),
        "MODEL_FAMILY": family,
        "numerical_features": values.get("numerical_features") or [],
        "data_path": "",
        "single_spec": True,
    }
    return Settings(values)
