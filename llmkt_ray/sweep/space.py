"""What one Optuna study searches: a cell with its layers and its model's own settings, or the baseline with the same settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from llmkt_ray.seeds import canonical_json, content_key
from llmkt_ray.study import ModelConfig, StudyConfig
from llmkt_ray.sweep.plan import Cell, Plan, base_spec, selection_window, treated_spec
from llmkt_ray.sweep.tuning import LOG_FROM, with_settings
from llmkt_ray.training.rungs import cutoff, rung_epochs
from llmkt_ray.training.spec import TrialSpec

Params = dict[str, Any]
Rungs = tuple[tuple[int, float], ...]
"""(epoch of phase 2, value that it asks for), see `TrialSpec.rungs`."""


@dataclass(frozen=True)
class SearchCell:
    """What one Optuna study searches: cells that differ in the layer alone, or the baseline that they share.

    Attributes:
        members: layer name to cell, the first is the default.
        arm: "treated", or "baseline": the same budget and the same ranges of the model's settings, no alpha and no layer.
    """

    members: Mapping[str, Cell]
    arm: str = "treated"

    @property
    def first(self) -> Cell:
        """The cell of the default layer."""
        return next(iter(self.members.values()))

    @property
    def model(self) -> ModelConfig:
        """The model with the settings that are tried first."""
        return self.first.model

    @property
    def key(self) -> str:
        """A key of what is searched."""
        if self.arm == "baseline":
            return content_key(["baseline", self.first.baseline_key])
        return content_key(sorted(cell.key for cell in self.members.values()))

    @property
    def name(self) -> str:
        """A readable name, for Optuna's storage."""
        cell = self.first
        dims = [] if cell.target.config.dims == "layer" else [cell.target.config.dims]
        of_cell = ["baseline"] if self.arm == "baseline" else [cell.factors["llm"], cell.factors["reduction"], *dims, cell.loss]
        return " ".join(map(str, [cell.split.label, cell.model.name, *of_cell, self.key[:6]]))

    def space(self, study: StudyConfig) -> dict[str, BaseDistribution]:
        """Returns the parameters: alpha, the layer where there are several, and the model's own settings.

        Names are those of optuna.importance's plots; what only this model has ends with its name.
        """
        space: dict[str, BaseDistribution] = {}
        if self.arm == "treated":
            space["alpha"] = FloatDistribution(*study.search.alpha)
            if len(self.members) > 1:
                space[f"layer_{self.model.name}"] = CategoricalDistribution(tuple(self.members))
        for name, (low, high) in sorted(self.model.search.ranges.items()):
            space[f"{name}_{self.model.name}"] = FloatDistribution(low, high, log=low > 0 and high / low >= LOG_FROM)
        for name in sorted(self.model.search.choices):
            space[f"{name}_{self.model.name}"] = CategoricalDistribution(list(self._choices(study, name)))
        return space

    def default(self, study: StudyConfig) -> Params:
        """Returns what is tried first: the claim's alpha at the first layer with the model's settings as they are."""
        found: Params = {}
        if self.arm == "treated":
            low, high = study.search.alpha
            found["alpha"] = min(max(study.transfer.claim_alpha, low), high)
            if len(self.members) > 1:
                found[f"layer_{self.model.name}"] = next(iter(self.members))
        for name in self.model.search.names:
            value = study.setting(self.model, name)
            found[f"{name}_{self.model.name}"] = value if name in self.model.search.ranges else canonical_json(value)
        return found

    def specs(self, study: StudyConfig, params: Params, rungs: Rungs = ()) -> list[TrialSpec]:
        """Returns the trials of a suggestion: one a seed; `rungs` end them early."""
        model = with_settings(self.model, self._settings(study, params))
        seeds = range(study.seeds)
        if self.arm == "baseline":
            window = selection_window(self.first.schedule)
            return [base_spec(study, self.first.split, model, seed, arm="baseline", schedule=window) for seed in seeds]
        cell = replace(self.members[params.get(f"layer_{model.name}", next(iter(self.members)))], model=model)
        return [treated_spec(study, cell, seed, alpha=params["alpha"]).model_copy(update={"rungs": rungs}) for seed in seeds]

    def rung_epochs(self, study: StudyConfig) -> tuple[int, ...]:
        """Returns the epochs of phase 2 at which suggestions are judged; none without early stopping, or without two phases."""
        stopping = study.search.early_stopping
        if stopping is None or self.arm == "baseline":
            return ()
        epochs = self.model.epochs or study.training.epochs
        return tuple(rung_epochs(stopping.grace_epochs, stopping.factor, epochs - self.first.schedule.phase1_epochs(epochs)))

    def rungs(self, study: StudyConfig, history: Sequence[FrozenTrial]) -> Rungs:
        """Returns what each rung asks of the suggestions of the next round: it is known before they start."""
        stopping = study.search.early_stopping
        found = []
        for epoch in self.rung_epochs(study):
            values = [trial.intermediate_values[epoch] for trial in history if epoch in trial.intermediate_values]
            asked = cutoff(values, stopping.factor, study.evaluation.select_on) if stopping else None
            if asked is not None:
                found.append((epoch, asked))
        return tuple(found)

    def _choices(self, study: StudyConfig, setting: str) -> Params:
        """Returns text to value of what is tried of a setting; the model's own value as the model has it, even if listed as 0 for 0.0."""
        own = study.setting(self.model, setting)
        values = [own if value == own else value for value in self.model.search.choices[setting]]
        return {canonical_json(value): value for value in values}

    def _settings(self, study: StudyConfig, params: Params) -> Params:
        search, name = self.model.search, self.model.name
        chosen = {setting: self._choices(study, setting)[params[f"{setting}_{name}"]] for setting in search.choices}
        return chosen | {setting: params[f"{setting}_{name}"] for setting in search.ranges}


def search_cells(plan: Plan) -> tuple[SearchCell, ...]:
    """Returns the searches of a plan, each over the layers of one combination of the other factors, and those of their baselines.

    A baseline is searched where there is something to search: settings of the model. Without them it has one configuration.
    """
    groups: dict[str, dict[str, Cell]] = {}
    baselines: dict[str, Cell] = {}
    for cell in plan.cells:
        groups.setdefault(cell.search_key, {})[cell.tap.name] = cell
        if cell.model.search.names and "baseline" in plan.study.controls_of(cell.model):
            baselines.setdefault(cell.baseline_key, cell)
    return (
        *(SearchCell(members) for members in groups.values()),
        *(SearchCell({cell.tap.name: cell}, "baseline") for cell in baselines.values()),
    )
