"""Levels of a factor: cells that agree in everything else, averaged per level, so that what is left is the factor.

Everything is at the prespecified alpha. A level is compared with its own alpha0 (its gain), and with the level that validation
prefers (the paired difference of the treated trials themselves).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmkt_ray.report.cells import CELL, SHOWN, Cell, Runs, shared_seeds, valid_values
from llmkt_ray.report.findings import Finding, of_contexts
from llmkt_ray.report.load import Results
from llmkt_ray.report.text import count, enough, hedged, left_out, listed, plain
from llmkt_ray.results.summary import SCHEDULE
from llmkt_ray.stats.contrast import Contrast, contrast, over_splits
from llmkt_ray.stats.corrections import benjamini_hochberg
from llmkt_ray.stats.selection import choose

FAMILIES: dict[str, tuple[str, ...]] = {
    "layer": ("layer",),
    "reducer": ("reduction",),
    "size": ("dims",),
    "sparsity": ("train_share",),
    "schedule": (*SCHEDULE, "alpha_schedule"),
    "profiles": ("llm",),
    "encoder": ("encoder",),
    "loss": ("loss", "projection", "balance"),
    "training": ("epochs", "batch_size", "learning_rate", "weight_decay", "hyperparameters"),
}
"""Factor to the columns that make it up: columns that a study varies together are one factor."""


@dataclass(frozen=True)
class Level:
    """One level of a factor in one dataset and model.

    Attributes:
        values: of the factor's columns that vary.
        cells: how many cells were averaged.
        valid: mean of treated over the trials that the levels were compared on; NaN where the level lacks one of them, see `choose`.
        test: mean of treated on test, over the trials of `gain` where there is one.
        gain: treated over alpha0 of the same level; None where there is no alpha0.
        to_best: treated of this level against treated of the level that is best on validation; None for that level itself and where
            the two share no seed.
        p_to_best: p of `to_best`, Benjamini-Hochberg over the levels of the factor in all datasets and models; NaN without one.
    """

    values: tuple[object, ...]
    cells: int
    valid: float
    test: float
    gain: Contrast | None
    to_best: Contrast | None
    p_to_best: float


@dataclass(frozen=True)
class Compared:
    """A factor in one dataset and model.

    Attributes:
        dataset, model: where.
        columns: those of the factor that vary.
        levels: in the order of the study's cells.
        best: place of the level with the best mean validation value.
        comparisons: how many levels' p-values were corrected together, in all datasets and models.
    """

    dataset: str
    model: str
    columns: tuple[str, ...]
    levels: tuple[Level, ...]
    best: int
    comparisons: int = 0

    @property
    def title(self) -> str:
        """Model and dataset."""
        return f"{self.model} on {self.dataset}"


def compared(results: Results, findings: Sequence[Finding], family: str) -> list[Compared]:
    """Returns a factor's levels in every dataset and model where it has at least two; empty where the study does not vary it.

    Levels are averaged over the combinations of the other factors in which every level finished.
    """
    made = []
    for (dataset, model), mine in of_contexts(findings).items():
        cells = [finding.cell for finding in mine]
        columns = tuple(c for c in FAMILIES[family] if len({cell.factors[c] for cell in cells}) > 1)
        # The width follows the layer where the study says `dims: layer`: then it belongs to the layer's level.
        tied = {"dims"} if family == "layer" and follows(cells, "dims", "layer") else set()
        others = [c for c in CELL if c not in columns and c not in tied]
        blocks: dict[tuple[object, ...], dict[tuple[object, ...], Cell]] = {}
        for cell in cells if columns else ():
            if cell.claim_alpha in cell.treated:
                at = tuple(cell.factors[c] for c in others)
                blocks.setdefault(at, {})[tuple(cell.factors[c] for c in columns)] = cell
        most = max((len(levels) for levels in blocks.values()), default=0)
        whole = [levels for levels in blocks.values() if len(levels) == most]
        names = [name for name in whole[0] if all(name in levels for levels in whole)] if most > 1 else []
        if len(names) > 1:
            made.append(_compared(results, dataset, model, columns, {name: [levels[name] for levels in whole] for name in names}))
    return _corrected(made)


def averaged(results: Results, pairs: Sequence[tuple[Runs, Runs]], metric: str) -> Contrast | None:
    """Returns the contrast of the mean of some arms with the mean of their controls, on the splits, seeds and users that all share."""
    if not pairs:
        return None
    values, keys = results.user_values(metric), results.keys
    means: dict[tuple[int, int], np.ndarray] = {}  # of both sides, (2, users)
    users: dict[int, np.ndarray] = {}
    for at in sorted(set.intersection(*(set(a.rows) & set(b.rows) for a, b in pairs))):
        sides = [[values.get(str(keys[pair[side].rows[at]])) for pair in pairs] for side in (0, 1)]
        found = [v for side in sides for v in side if v is not None]
        if found and len(found) == 2 * len(pairs):
            evaluated = users.setdefault(at[0], found[0][0])
            if len(evaluated) >= 2 and all(np.array_equal(v[0], evaluated) for v in found):
                means[at] = np.stack([v[1] for v in found]).reshape(2, len(pairs), -1).mean(axis=1, dtype=np.float64)
    parts = []
    for split, seeds in shared_seeds(means).items():
        one, other = np.stack([means[split, seed] for seed in seeds], axis=1)
        parts.append(contrast(one, other, users=users[split], seeds=seeds, lower_is_better=results.sign(metric) < 0))
    return over_splits(parts) if parts else None


def sentence(results: Results, one: Compared) -> tuple[str, str, str] | None:
    """Returns (question, answer, evidence) for one dataset and model: which level is best, and from which it can be told apart."""
    best = one.levels[one.best]
    others = [(level, level.to_best) for place, level in enumerate(one.levels) if place != one.best and level.to_best is not None]
    if not others:
        return None
    seeds = [c.difference.n_seeds for _, c in others]
    told = [(level, c) for level, c in others if level.p_to_best < 0.05 and c.difference.n_seeds >= enough(seeds)]
    worse = [level_name(one, level) for level, c in told if c.difference.estimate < 0]
    better = [level_name(one, level) for level, c in told if c.difference.estimate > 0]
    name = level_name(one, best)
    if better:
        said = f"{name} on validation, but on test {listed(better)} is better: choose between them on other data."
    elif len(worse) == len(others):
        said = f"{name}: {['the other is', 'both others are'][len(worse) - 1] if len(worse) < 3 else f'all {len(worse)} others are'} worse."
    elif worse:
        said = f"{name}, inconclusive: worse is only {listed(worse)}; the rest cannot be told apart from it."
    else:
        said = f"Inconclusive: {name} is best on validation, but no other {columns_of(one)} can be told apart from it."
    conditions = dict.fromkeys(condition for _, c in others for condition in c.conditions)
    rivals = [f"{level_name(one, level)} {plain(level.valid)}" for level, _ in others if np.isfinite(level.valid)]
    said = hedged(said, max(seeds))
    evidence = (
        f"Validation {results.metric} {plain(best.valid)}"
        + (f" against {', '.join(rivals[:6])}" if rivals else "")
        + f"; paired on test, {count(min(seeds), 'seed')}, Benjamini-Hochberg over {count(one.comparisons, 'comparison')}"
        + (f"; {listed(list(conditions))}" if conditions else "")
        + "."
        + left_out([level_name(one, level) for level in one.levels if not np.isfinite(level.valid)])
    )
    return f"Which {columns_of(one)} for {one.title}?", said, evidence


def level_name(one: Compared, level: Level) -> str:
    """Returns a level in words: values, named where several columns vary."""
    values = dict(zip(one.columns, level.values, strict=True))
    return words_of(values)


def words_of(values: Mapping[str, object]) -> str:
    """Returns the values of a factor's columns in words."""
    plain_values = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    if set(values) <= set(FAMILIES["schedule"]) and "schedule" in values:
        parts = [plain_values.pop("schedule").replace("_", "-")]
        if "switch" in plain_values and parts != ["joint"]:
            parts.append(f"at {plain_values['switch']}")
        defaults = {"handover": "last", "optimizer": "reset", "alpha_schedule": "constant"}
        parts += [plain_values[name].replace("_", " ") for name in defaults if plain_values.get(name, defaults[name]) != defaults[name]]
        if plain_values.get("freeze", "-") != "-":
            parts.append(f"frozen {plain_values['freeze']}")
        return " ".join(parts)
    if len(plain_values) == 1:
        return next(iter(plain_values.values()))
    return ", ".join(f"{SHOWN[name]} {value}" for name, value in plain_values.items())


def columns_of(one: Compared) -> str:
    """Returns what a factor is called."""
    return "schedule" if "schedule" in one.columns else listed([SHOWN[name] for name in one.columns])


def _compared(
    results: Results, dataset: str, model: str, columns: tuple[str, ...], levels: dict[tuple[object, ...], list[Cell]]
) -> Compared:
    runs = {name: [cell.treated[cell.claim_alpha] for cell in cells] for name, cells in levels.items()}
    rows = {name: [row for one in of_level for row in one.rows.values()] for name, of_level in runs.items()}
    values = {
        name: {(place, *at): value for place, one in enumerate(of_level) for at, value in valid_values(results, one).items()}
        for name, of_level in runs.items()
    }
    choice = choose(values, lower_is_better=results.sign() < 0)
    names = list(levels)
    best = names.index(choice.best) if choice is not None else 0
    to_best = {
        name: averaged(results, list(zip(runs[name], runs[names[best]], strict=True)), results.metric)
        for place, name in enumerate(names) if place != best
    }  # fmt: skip
    valid = choice.means if choice is not None else {}
    made = []
    for name, cells in levels.items():
        pairs = [(run, cell.controls["alpha0"]) for run, cell in zip(runs[name], cells, strict=True) if "alpha0" in cell.controls]
        gain = averaged(results, pairs, results.metric) if len(pairs) == len(cells) else None
        level = Level(
            name,
            len(cells),
            valid.get(name, np.nan),
            gain.mean_arm if gain is not None else float(results.tested.iloc[rows[name]].mean()),
            gain,
            to_best.get(name),
            np.nan,
        )
        made.append(level)
    return Compared(dataset, model, columns, tuple(made), best)


def _corrected(made: Sequence[Compared]) -> list[Compared]:
    """Returns comparisons with the p-values of all of them corrected together."""
    known = [level.to_best.difference.p for one in made for level in one.levels if level.to_best is not None]
    adjusted = iter(benjamini_hochberg(known))
    return [
        replace(
            one,
            levels=tuple(level if level.to_best is None else replace(level, p_to_best=float(next(adjusted))) for level in one.levels),
            comparisons=len(known),
        )
        for one in made
    ]


def follows(cells: Sequence[Cell], column: str, leader: str) -> bool:
    """Says whether a column takes one value for each value of another."""
    found: dict[object, set[object]] = {}
    for cell in cells:
        found.setdefault(cell.factors[leader], set()).add(cell.factors[column])
    return all(len(values) == 1 for values in found.values())
