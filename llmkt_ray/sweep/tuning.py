"""Base hyper-parameters, tuned once per (dataset, model) and then frozen for all arms (METHOD.md, section 2, trap 16).

The published arms differ in tuning, and a rival that was not tuned is easily beaten. Here the plain model, without any profile, is tried at
settings drawn at random (Bergstra and Bengio, JMLR 2012), the study's own among them; the best on validation is what every arm of
that dataset and model then has. All settings are drawn before the first trial runs, so that the choice depends on the rows alone: a
resumed study comes to the same one. Test takes no part in it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from llmkt_ray.errors import SweepError
from llmkt_ray.seeds import derive_seed
from llmkt_ray.study import ModelConfig, StudyConfig
from llmkt_ray.study_work import OWN_SETTINGS
from llmkt_ray.sweep.pipeline import SplitNode
from llmkt_ray.sweep.plan import base_spec, selection_window
from llmkt_ray.training.metrics import LOWER_IS_BETTER
from llmkt_ray.training.spec import TrialSpec

Tuned = Mapping[tuple[str, str], ModelConfig]
"""(dataset, model) to the model with its tuned settings."""
LOG_FROM = 10.0
"""Ratio of a range's ends from which it is drawn on a logarithmic scale."""
_DIGITS = 4


def candidates(study: StudyConfig, dataset: str, model: ModelConfig) -> list[ModelConfig]:
    """Returns the model at every setting that is tried, as many as `tuning.trials`: its own first."""
    rng = np.random.default_rng(derive_seed(study.seed, "tuning", dataset, model.name))
    return [model, *(with_settings(model, _drawn(study, rng)) for _ in range(study.tuning.trials - 1))]


def tuning_specs(study: StudyConfig, split: SplitNode, model: ModelConfig) -> Iterator[tuple[ModelConfig, list[TrialSpec]]]:
    """Yields each candidate with its trials, one a seed: baselines that choose among the epochs of the study's first schedule."""
    window = selection_window(study.transfer.schedule[0])
    for candidate in candidates(study, split.config.name, model):
        yield candidate, [base_spec(study, split, candidate, seed, arm="baseline", schedule=window) for seed in range(study.tuning.seeds)]


def first_splits(splits: tuple[SplitNode, ...]) -> list[SplitNode]:
    """Returns the split of each dataset that is tuned on: its first repetition, at its first train share."""
    return list({split.config.name: split for split in reversed(splits)}.values())[::-1]


def tuned_models(study: StudyConfig, splits: tuple[SplitNode, ...], rows: pd.DataFrame) -> Tuned:
    """Returns what the finished tuning trials chose: the best mean of `evaluation.select_on` on validation.

    Args:
        study: the study.
        splits: its splits.
        rows: the ledger's trials.

    Raises:
        SweepError: no setting of a model has finished all its trials.
    """
    sign = -1.0 if study.evaluation.select_on in LOWER_IS_BETTER else 1.0
    column = f"valid_{study.evaluation.select_on}"
    done = rows[rows["status"] == "done"].set_index("trial_key") if len(rows) else rows
    chosen: dict[tuple[str, str], ModelConfig] = {}
    for split in first_splits(splits):
        for model in study.models:
            best: tuple[float, ModelConfig] | None = None
            for candidate, specs in tuning_specs(study, split, model):
                keys = [spec.key for spec in specs]
                if not len(done) or not set(keys) <= set(done.index):
                    continue
                value = sign * float(done.loc[keys, column].mean())
                if best is None or value > best[0]:
                    best = value, candidate
            if best is None:
                raise SweepError(
                    f"none of the {study.tuning.trials} settings of {model.name} on {split.config.name} has finished its tuning trials; "
                    "look at their errors (`llmkt status`), and mend `tuning.ranges` or the model's settings"
                )
            chosen[split.config.name, model.name] = best[1]
    return chosen


def _drawn(study: StudyConfig, rng: np.random.Generator) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (low, high) in sorted(study.tuning.ranges.items()):
        share = rng.random()
        log = low > 0 and high / low >= LOG_FROM
        value = float(low * (high / low) ** share if log else low + (high - low) * share)
        found[name] = min(max(float(f"{value:.{_DIGITS}g}"), low), high)
    for name, values in sorted(study.tuning.choices.items()):
        found[name] = values[int(rng.integers(len(values)))]
    return found


def with_settings(model: ModelConfig, settings: Mapping[str, Any]) -> ModelConfig:
    """Returns a model with settings replaced: its own by name, all others are RecBole's."""
    own = {name: value for name, value in settings.items() if name in OWN_SETTINGS}
    recboles = {name: value for name, value in settings.items() if name not in OWN_SETTINGS}
    return ModelConfig.model_validate({**model.model_dump(), **own, "hyperparameters": {**model.hyperparameters, **recboles}})
