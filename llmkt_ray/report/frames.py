"""Rows for the questions that look at all cells at once: gains by configuration and seed, and values by factor."""

from collections.abc import Sequence

import pandas as pd

from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.stats.importance import SEED


def gain_rows(results: Results, findings: Sequence[Finding]) -> pd.DataFrame:
    """Returns one row a (cell, alpha, split, seed): its relative gain over alpha0 of the same split and seed, `valid` and `test`.

    Positive is better.
    """
    trials = results.trials
    parts = {"valid": trials[f"valid_{results.metric}"].to_numpy(dtype=float), "test": results.tested.to_numpy()}
    rows = []
    for finding in findings:
        cell, alpha0 = finding.cell, finding.cell.controls.get("alpha0")
        for alpha, runs in cell.treated.items():
            for (split, seed), row in runs.rows.items():
                base = alpha0.rows.get((split, seed)) if alpha0 else None
                if base is not None and min(parts["valid"][base], parts["test"][base]) > 0:
                    gains = {part: results.sign() * (values[row] / values[base] - 1) for part, values in parts.items()}
                    rows.append({"cell": cell.number, "alpha": alpha, "split": split, "seed": seed, **gains})
    return pd.DataFrame(rows, columns=["cell", "alpha", "split", "seed", "valid", "test"])


def factor_rows(results: Results, findings: Sequence[Finding]) -> pd.DataFrame:
    """Returns one row a treated trial: its factors, alpha, split, seed, and `value`: validation, relative to its dataset and model,
    negative where less of the metric is better.
    """
    rows = []
    column = results.trials[f"valid_{results.metric}"]
    for finding in findings:
        cell = finding.cell
        for alpha, runs in cell.treated.items():
            for (split, seed), row in runs.rows.items():
                where = {name: str(cell.factors[name]) for name in ("dataset", "model", *cell.varied)}
                rows.append({**where, "alpha": alpha, "split": f"split {split}", SEED: seed, "value": float(column.iloc[row])})
    frame = pd.DataFrame(rows)
    if len(frame):
        # Levels of datasets and models differ by nature; what is asked is what moves a model on a dataset.
        frame["value"] *= results.sign() / frame.groupby(["dataset", "model"])["value"].transform("mean")
    return frame
