"""The table at the end of a run: means over seeds on test, arm by arm. The report has the intervals; this has none."""

from dataclasses import dataclass

import pandas as pd

from llmkt_ray.results.once import freezing, refuse_two_rows
from llmkt_ray.study import INPUT_ARMS, TABLE_ARMS
from llmkt_ray.training.metrics import LOWER_IS_BETTER

SCHEDULE = ["schedule", "switch", "handover", "optimizer", "freeze"]
"""What alpha0 shares with its cell beside the model's own settings."""
CELL = [
    "dataset", "train_share", "split_repetition", "model", "layer", "llm", "encoder", "reduction", "dims", "loss", *SCHEDULE,
    "alpha_schedule",
]  # fmt: skip
"""Columns that tell cells apart."""
BASE = ["hyperparameters", "epochs", "batch_size", "learning_rate", "weight_decay"]
"""Settings of the model; trials that tuned them have others than the cells."""
SHARED_BY = {
    "baseline": [*CELL[:4], *BASE, "window"],
    "alpha0": [*CELL[:4], *BASE, *SCHEDULE],
    **{arm: [*CELL[:4], *BASE, *SCHEDULE, "llm", "encoder", "reduction"] for arm in TABLE_ARMS},
    **{arm: [*CELL[:4], *BASE, *SCHEDULE, "llm", "encoder"] for arm in INPUT_ARMS if arm not in TABLE_ARMS},
}
"""The columns that a control trial without a transfer depends on: it is shared by all cells that agree in them."""


@dataclass(frozen=True)
class SummaryLine:
    """One cell of the study.

    Attributes:
        cell: values of `CELL`, as text.
        arms: column title to mean test value over seeds: baseline, alpha0, one a treated alpha, the control twins.
        gain: relative difference of treated and alpha0 at the claim's alpha, positive is better; NaN where either is missing.
        over_shuffled: the same over shuffled.
    """

    cell: dict[str, str]
    arms: dict[str, float]
    gain: float
    over_shuffled: float


def summarise(trials: pd.DataFrame, metric: str, claim_alpha: float) -> tuple[tuple[SummaryLine, ...], dict[str, dict[str, float]]]:
    """Returns the lines of the summary and, by dataset, the reference models' values.

    Args:
        trials: the ledger's trials.
        metric: for example "NDCG@10".
        claim_alpha: the alpha at which gains are stated; 1 in cells whose schedule is `pretrain`.

    Raises:
        StorageError: two trials of one arm and seed were made from different inputs under the same labels.
    """
    column = f"test_{metric}"
    if column not in trials:
        return (), {}
    done = trials[trials["status"] == "done"]
    # What decides which epochs the tested model may come from: a cell is compared with the baseline that chose among the same.
    windows = [kind if kind == "joint" else switch for kind, switch in zip(done["schedule"], done["switch"], strict=True)]
    done = done.assign(window=windows, freeze=done["spec"].map(freezing))
    references = done[done["arm"] == "reference"].groupby(["dataset", "model"], sort=True)[column].mean()
    by_dataset: dict[str, dict[str, float]] = {}
    for (dataset, model), value in references.items():
        by_dataset.setdefault(str(dataset), {})[str(model)] = float(value)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    lines = []
    of_cells = done[done["layer"].notna()]
    for key, rows in of_cells.groupby(CELL, sort=True, dropna=False):
        cell = dict(zip(CELL, key, strict=True))
        shared_by = {**cell, **{name: rows[name].iloc[0] for name in (*BASE, "window")}}
        shared = {arm: done[(done["arm"] == arm) & _equal(done, shared_by, names)] for arm, names in SHARED_BY.items()}
        arms = {arm: _mean(_of_width(twins, cell["dims"]) if arm in TABLE_ARMS else twins, column) for arm, twins in shared.items()}
        for alpha, treated in rows[rows["arm"] == "treated"].groupby("alpha", sort=True):
            arms[f"alpha {alpha:g}"] = _mean(treated, column)
        for arm, twins in rows[rows["arm"] != "treated"].groupby("arm", sort=True):
            arms[str(arm)] = _mean(twins, column)
        claimed = 1.0 if cell["schedule"] == "pretrain" else claim_alpha
        treated = arms.get(f"alpha {claimed:g}", float("nan"))
        lines.append(
            SummaryLine(
                {name: "" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value) for name, value in cell.items()},
                {arm: value for arm, value in arms.items() if not pd.isna(value)},
                sign * (treated / arms["alpha0"] - 1),
                sign * (treated / arms.get("shuffled", float("nan")) - 1),
            )
        )
    return tuple(lines), by_dataset


def _equal(frame: pd.DataFrame, cell: dict[str, object], names: list[str]) -> pd.Series:
    same = pd.Series(True, index=frame.index)
    for name in names:
        same &= frame[name].isna() if pd.isna(cell[name]) else frame[name] == cell[name]
    return same


def _of_width(rows: pd.DataFrame, dims: object) -> pd.DataFrame:
    """Returns the trials of direct input whose targets are as wide as the cell's, or all where there is one width: the user table's."""
    same = rows[rows["dims"] == dims]
    return same if len(same) or rows["dims"].nunique() != 1 else rows


def _mean(rows: pd.DataFrame, column: str) -> float:
    if rows.empty:
        return float("nan")
    place = ["split_repetition", "seed_index", *BASE]  # a search may try two settings at one alpha
    for _, same in rows[rows.duplicated(place, keep=False)].groupby(place, dropna=False):
        for at in range(1, len(same)):
            refuse_two_rows(same.iloc[0], same.iloc[at])
    return float(rows.drop_duplicates(place)[column].mean())
