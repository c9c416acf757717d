"""Cells: the treated trials that share every setting but alpha and seed, with the control twins they are to be compared with."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from llmkt_ray.report.load import Results, UserValues
from llmkt_ray.results.once import refuse_two_rows
from llmkt_ray.results.summary import SCHEDULE
from llmkt_ray.stats.contrast import Contrast, contrast, on_shared_seeds, over_splits
from llmkt_ray.study import INPUT_ARMS, PLAIN_ARMS, TABLE_ARMS

T = TypeVar("T")

TRAINING = ["dataset", "train_share", "model", "hyperparameters", "epochs", "batch_size", "learning_rate", "weight_decay"]
"""What a baseline shares with its cell, beside the window of epochs that the tested model may come from."""
TRANSFER = ["layer", "llm", "encoder", "reduction", "dims", "loss", "projection", "balance", "alpha_schedule"]
"""What the other twins share beside both; a template made as a cell of its own differs in `llm`."""
INPUT = ["llm", "encoder", "reduction"]
"""What direct input shares with its cell beside `TRAINING` and `SCHEDULE`: it knows no layer, and its width is the user table's."""
CELL = [*TRAINING, *SCHEDULE, *TRANSFER]
SHOWN = {
    "train_share": "train share", "layer": "layer", "llm": "profiles", "encoder": "encoder", "reduction": "reducer", "dims": "dims",
    "loss": "loss", "projection": "projection", "balance": "balance", "schedule": "schedule", "switch": "switch", "handover": "hand-over",
    "optimizer": "optimizer", "freeze": "frozen", "alpha_schedule": "alpha schedule", "learning_rate": "learning rate",
    "hyperparameters": "hyper-parameters", "epochs": "epochs", "batch_size": "batch size", "weight_decay": "weight decay",
}  # fmt: skip
ARM_ORDER = (
    "baseline", "alpha0", "constant", "gaussian", "shuffled", "shuffled_strata", "item_mean", "template", "input_init", "input_concat",
    "static_profile", "kar", "kar_treated",
)  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """The finished trials of one arm at one alpha: (split repetition, seed index) to row number of `Results.trials`."""

    arm: str
    alpha: float
    rows: Mapping[tuple[int, int], int]

    @property
    def seeds(self) -> int:
        """Number of seed indices that finished."""
        return len({seed for _, seed in self.rows})


@dataclass(frozen=True)
class Cell:
    """One combination of factors.

    Attributes:
        number: its place in the report, from 1.
        factors: column to value.
        varied: names of the factors that distinguish the study's cells, dataset and model apart.
        claim_alpha: the prespecified alpha; 1 where alpha does not matter (schedule `pretrain`).
        treated: alpha to runs, ascending.
        controls: arm to runs.
        alphas: those of which a treated trial has a row, failed ones too, ascending.
    """

    number: int
    factors: Mapping[str, Any]
    varied: tuple[str, ...]
    claim_alpha: float
    treated: Mapping[float, Runs]
    controls: Mapping[str, Runs]
    alphas: tuple[float, ...] = ()
    _cache: dict[tuple[str, float, str, str], Contrast | None] = field(default_factory=dict, compare=False)

    @property
    def title(self) -> str:
        """Model and dataset."""
        return f"{self.factors['model']} on {self.factors['dataset']}"

    @property
    def detail(self) -> str:
        """The varied factors in words, empty where there are none."""
        return ", ".join(f"{SHOWN[name]} {_plain(self.factors[name])}" for name in self.varied)

    @property
    def brief(self) -> str:
        """The varied factors without their names, for where there is little room."""
        return ", ".join(_plain(self.factors[name]) for name in self.varied)

    @property
    def label(self) -> str:
        """Title and detail."""
        return f"{self.title} ({self.detail})" if self.detail else self.title

    @property
    def trials(self) -> str:
        """Words that find the cell's trials, its twins included, in the page's list."""
        return f"cell:{self.number}"

    @property
    def rows(self) -> Iterator[int]:
        """Row numbers of all its trials, twins that it shares with other cells included."""
        for runs in (*self.treated.values(), *self.controls.values()):
            yield from runs.rows.values()

    def runs(self, arm: str, alpha: float | None = None) -> Runs | None:
        """Returns the runs of an arm (of `treated`, at `alpha`), None where there are none."""
        return self.treated.get(alpha) if arm == "treated" and alpha is not None else self.controls.get(arm)


def claimed_at(results: Results, cells: Iterable[Cell]) -> str:
    """Returns the alpha that numbers of some cells are at, in words; a schedule that has one alpha only is claimed at that."""
    found = {cell.claim_alpha for cell in cells} or {results.claim_alpha}
    usual = results.claim_alpha if results.claim_alpha in found else min(found)
    return f"alpha {usual:g}" + (" (1 where the schedule is pretrain)" if len(found) > 1 else "")


def _input_columns(arm: str) -> list[str]:
    """Returns what an input arm shares with its cell; knowledge as features is not reduced."""
    return [*TRAINING, *SCHEDULE, *(name for name in INPUT if arm in TABLE_ARMS or name != "reduction")]


def find_cells(results: Results) -> tuple[Cell, ...]:
    """Returns the cells of a study, in the order of dataset, model and the other factors, layers in that of the plan.

    Raises:
        StorageError: two trials of one arm and seed were made from different inputs under the same labels.
    """
    trials = results.trials
    missing = [column for column in [*CELL, "split_repetition", "seed_index", "alpha"] if column not in trials]
    if trials.empty or missing:
        return ()
    rows = trials.assign(**{c: trials[c].map(_hashable) for c in CELL}, split_repetition=trials["split_repetition"].fillna(0).astype(int))
    rows["window"] = [_window(kind, switch) for kind, switch in zip(rows["schedule"], rows["switch"], strict=True)]
    known = rows[rows["arm"] != "reference"]
    specific = known[~known["arm"].isin([*PLAIN_ARMS, *INPUT_ARMS])]
    layers = planned_layers(results)
    where = zip(specific["dataset"], specific["model"], specific["layer"], strict=True)
    places = [mine.index(layer) if layer in (mine := layers.get((d, m), [])) else len(mine) for d, m, layer in where]
    at = CELL.index("layer")
    ordered_by = [*CELL[:at], "place", *CELL[at:]]
    groups = [(*key[:at], *key[at + 1 :]) for key, _ in specific.assign(place=places).groupby(ordered_by, dropna=False, sort=True)]
    varied = tuple(name for name in SHOWN if len({tuple(g)[CELL.index(name)] for g in groups}) > 1 and not _follows(groups, name))
    done = known[known["status"] == "done"]
    by = {
        "baseline": _grouped(done[done["arm"] == "baseline"], [*TRAINING, "window"]),
        "alpha0": _grouped(done[done["arm"] == "alpha0"], [*TRAINING, *SCHEDULE]),
        **{arm: _grouped(done[done["arm"] == arm], _input_columns(arm)) for arm in INPUT_ARMS},
        "rest": _grouped(done[~done["arm"].isin([*PLAIN_ARMS, *INPUT_ARMS])], CELL),
    }
    tried = _grouped(specific[specific["arm"] == "treated"], CELL)
    templates = _template_labels(results)
    cells = []
    for number, group in enumerate(groups, 1):
        values = dict(zip(CELL, group, strict=True))
        window = _window(values["schedule"], values["switch"])
        claim_alpha = 1.0 if values["schedule"] == "pretrain" else results.claim_alpha
        own = by["rest"].get(tuple(group), specific.iloc[:0])
        treated = {float(a): _runs("treated", float(a), frame) for a, frame in own[own["arm"] == "treated"].groupby("alpha")}
        controls = {str(arm): _runs(str(arm), _alpha(frame), frame) for arm, frame in own[own["arm"] != "treated"].groupby("arm")}
        for arm, columns in (("baseline", [*TRAINING, "window"]), ("alpha0", [*TRAINING, *SCHEDULE])):
            frame = by[arm].get(tuple({**values, "window": window}[c] for c in columns))
            if frame is not None:
                controls[arm] = _runs(arm, 0.0, frame)
        for arm in INPUT_ARMS:
            frame = by[arm].get(tuple(values[c] for c in _input_columns(arm)))
            if frame is not None:
                same = frame[frame["dims"] == values["dims"]]
                if len(same) or frame["dims"].nunique() == 1:  # of several widths that are not the cell's, none is its twin
                    controls[arm] = _runs(arm, 0.0, same if len(same) else frame)
        if "template" not in controls and values["llm"] not in templates:
            twin = _template_twin(values, templates, by["rest"], claim_alpha)
            if twin is not None:
                controls["template"] = twin
        order = {arm: place for place, arm in enumerate(ARM_ORDER)}
        ordered = dict(sorted(controls.items(), key=lambda pair: order.get(pair[0], len(order))))
        alphas = tuple(sorted({float(a) for a in tried[tuple(group)]["alpha"]})) if tuple(group) in tried else ()
        cells.append(Cell(number, values, varied, claim_alpha, dict(sorted(treated.items())), ordered, alphas))
    return tuple(cells)


def planned_layers(results: Results) -> dict[tuple[str, str], list[str]]:
    """Returns (dataset, model) to its layers in the order of the plan: forward order for `all`, else as the study names them.

    Empty where the card does not say.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for entry in results.card.get("cells", []):
        mine = found.setdefault((str(entry.get("dataset")), str(entry.get("model"))), [])
        if entry.get("layer") and entry["layer"] not in mine:
            mine.append(str(entry.get("layer")))
    return found


def compare(results: Results, cell: Cell, alpha: float, control: str, metric: str | None = None, arm: str = "treated") -> Contrast | None:
    """Returns the contrast of an arm (`treated` at `alpha`, or a control) with a control on shared splits, seeds and users.

    None where one of them has not run, or where they share no seed.
    """
    metric = metric or results.metric
    at = (arm, alpha, control, metric)
    if at not in cell._cache:
        cell._cache[at] = _compare(results, cell.runs(arm, alpha), cell.runs(control), metric)
    return cell._cache[at]


class Paired(NamedTuple):
    """The values of two arms on one split, where both share a seed.

    Attributes:
        seeds: indices of the seeds, the same in all splits.
        users: the evaluated users, `(users,)`.
        one, other: tables `(seeds, users)`, rows and columns in the same order.
    """

    seeds: tuple[int, ...]
    users: np.ndarray
    one: np.ndarray
    other: np.ndarray


def paired_tables(results: Results, one: Runs, other: Runs, metric: str) -> dict[int, Paired]:
    """Returns split repetition to the values of both arms, on the seeds that all splits share."""
    found, tables = of_both(results, one, other, results.user_values(metric)), {}
    for repetition, seeds in shared_seeds(found).items():
        both = [found[repetition, seed] for seed in seeds]
        tables[repetition] = Paired(tuple(seeds), both[0][0][0], _stack(a for a, _ in both), _stack(b for _, b in both))
    return tables


def of_both(results: Results, one: Runs, other: Runs, values: Mapping[str, T]) -> dict[tuple[int, int], tuple[T, T]]:
    """Returns (split repetition, seed index) to what two arms have there, where both have something; `values` is by trial key."""
    keys = results.keys
    pairs = {at: (values.get(keys[one.rows[at]]), values.get(keys[other.rows[at]])) for at in one.rows.keys() & other.rows.keys()}
    return {at: (a, b) for at, (a, b) in pairs.items() if a is not None and b is not None}


def shared_seeds(at: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Returns `on_shared_seeds` of pairs (split repetition, seed index)."""
    found: dict[int, set[int]] = {}
    for repetition, seed in at:
        found.setdefault(repetition, set()).add(seed)
    return on_shared_seeds(found)


def shared(one: Runs, other: Runs | None) -> Runs:
    """Returns the trials of an arm that a contrast with another one rests on; all of them where there is no other."""
    if other is None:
        return one
    both = shared_seeds(one.rows.keys() & other.rows.keys())
    return replace(one, rows={at: row for at, row in one.rows.items() if at[1] in both.get(at[0], ())})


def valid_values(results: Results, runs: Runs) -> dict[tuple[int, int], float]:
    """Returns (split repetition, seed index) to the validation value of an arm."""
    column = results.trials[f"valid_{results.metric}"].to_numpy(dtype=float)
    return {at: float(column[row]) for at, row in runs.rows.items()}


def _compare(results: Results, one: Runs | None, other: Runs | None, metric: str) -> Contrast | None:
    if one is None or other is None:
        return None
    pairs = [p for p in paired_tables(results, one, other, metric).values() if p.one.shape == p.other.shape and p.one.shape[1] >= 2]
    less = results.sign(metric) < 0
    return over_splits([contrast(p.one, p.other, users=p.users, seeds=p.seeds, lower_is_better=less) for p in pairs]) if pairs else None


def _stack(values: Iterable[UserValues]) -> np.ndarray:
    """Returns a table `(seeds, users)`; all trials of one split evaluate the same users in the same order."""
    found = list(values)
    users = found[0][0]
    if any(not np.array_equal(index, users) for index, _ in found):
        raise AssertionError("trials of one split must have evaluated the same users")
    return np.stack([value for _, value in found])


def _runs(arm: str, alpha: float, frame: pd.DataFrame) -> Runs:
    found: dict[tuple[int, int], int] = {}
    for repetition, seed, row in zip(frame["split_repetition"], frame["seed_index"], frame.index, strict=True):
        first = found.setdefault((int(repetition), int(seed)), int(row))
        if first != row:
            refuse_two_rows(frame.loc[first], frame.loc[row])
    return Runs(arm, alpha, found)


def _window(kind: Any, switch: Any) -> Any:
    """Returns what decides which epochs the tested model may come from: a baseline is compared with cells of the same window."""
    return kind if kind == "joint" else switch


def _alpha(frame: pd.DataFrame) -> float:
    return float(frame["alpha"].iloc[0])


def _grouped(frame: pd.DataFrame, columns: list[str]) -> dict[tuple[Any, ...], pd.DataFrame]:
    return {tuple(key): part for key, part in frame.groupby(columns, dropna=False, sort=False)} if len(frame) else {}


def _template_labels(results: Results) -> set[str]:
    """Returns the labels of profiles that no LLM wrote and that come from the built-in template."""
    return {str(p.get("name") or "template") for p in results.study.get("profiles", []) if p.get("llm") == "template"}


def _template_twin(values: Mapping[str, Any], templates: set[str], by: Mapping[tuple[Any, ...], pd.DataFrame], alpha: float) -> Runs | None:
    """Returns the treated trials of the same cell with template profiles, where the study has them as a level of its own."""
    for label in sorted(templates):
        frame = by.get(tuple({**values, "llm": label}[c] for c in CELL))
        if frame is not None:
            same = frame[(frame["arm"] == "treated") & (frame["alpha"] == alpha)]
            if len(same):
                return _runs("template", alpha, same)
    return None


def _follows(groups: list[Any], name: str) -> bool:
    """Says whether a factor takes one value a model and dataset only: then it is a setting, not an axis.

    The targets' width follows the layer's too, where a study asks for that (`dims: layer`).
    """
    by = [CELL.index(other) for other in ("model", "dataset", *(("layer", "reduction") if name == "dims" else ()))]
    levels: dict[tuple[Any, ...], set[Any]] = {}
    for group in groups:
        levels.setdefault(tuple(group[at] for at in by), set()).add(group[CELL.index(name)])
    return all(len(found) == 1 for found in levels.values())


def _hashable(value: Any) -> Any:
    """Missing values of any kind become "-", so that they group and compare as equal."""
    return "-" if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA else value


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
