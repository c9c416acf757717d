"""One trial as one Parquet row: the schema of the ledger, both ways.

A row holds the trial's scalars, and its epochs, per-user metrics and top-k lists as list columns named
`epoch:<name>`, `user:<name>` and `recommended`. So one file is one trial, and one atomic rename commits all
of it; whoever wants the scalars only reads those columns only.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from llmkt_ray.seeds import canonical_json
from llmkt_ray.training.spec import TrialResult

SCHEMA_VERSION = 1
"""Rises when a column changes its meaning; a reader refuses rows of a later version."""

MEASUREMENT_COLUMNS = ("wall_s", "cpu_s", "peak_rss_bytes", "host", "device", "versions", "timings", "finished_at")
"""Columns in which equal trials may differ; in the epochs, `duration_s` too."""

FACTORS: dict[str, pa.DataType] = {
    "llm": pa.string(),
    "encoder": pa.string(),
    "reduction": pa.string(),
    "dims": pa.int32(),
    "train_share": pa.float64(),
    "split_repetition": pa.int32(),
}
"""Labels of a trial's cell that are columns of their own; null where the trial does not depend on them."""

_SCALARS: dict[str, pa.DataType] = {
    "trial_key": pa.string(), "study_key": pa.string(), "schema_version": pa.int32(), "status": pa.string(),
    "dataset": pa.string(), "split_key": pa.string(), "model": pa.string(), "arm": pa.string(), "alpha": pa.float64(),
    "layer": pa.string(), "loss": pa.string(), "projection": pa.string(), "balance": pa.string(), "schedule": pa.string(),
    "switch": pa.float64(), "handover": pa.string(), "optimizer": pa.string(), "alpha_schedule": pa.string(),
    "seed_index": pa.int32(), "epochs": pa.int32(), "batch_size": pa.int32(), "learning_rate": pa.float64(),
    "weight_decay": pa.float64(), "hyperparameters": pa.string(), "targets_key": pa.string(), **FACTORS, "spec": pa.string(),
    "best_epoch": pa.int32(), "converged": pa.bool_(), "facts": pa.string(), "error_kind": pa.string(),
    "error_message": pa.string(), "error_traceback": pa.string(), "wall_s": pa.float64(), "cpu_s": pa.float64(),
    "peak_rss_bytes": pa.int64(), "host": pa.string(), "device": pa.string(), "versions": pa.string(),
    "timings": pa.string(), "finished_at": pa.string(),
}  # fmt: skip
"""Scalar columns in order; the metrics, `valid_<metric>` and `test_<metric>`, follow them as float64."""


def to_row(result: TrialResult, study_key: str) -> pa.Table:
    """Returns a trial as a table of one row."""
    spec, measures, error = result.spec, result.measures, result.error or {}
    dump = spec.model_dump(mode="json")
    scalars: dict[str, Any] = {
        **{name: value for name, value in dump.items() if name in _SCALARS},
        **{name: spec.factors.get(name) for name in FACTORS},
        "trial_key": spec.key,
        "study_key": study_key,
        "schema_version": SCHEMA_VERSION,
        "status": result.status,
        "schedule": spec.schedule.kind,
        "switch": spec.schedule.switch,
        "handover": spec.schedule.handover,
        "optimizer": spec.schedule.optimizer,
        "alpha_schedule": spec.schedule.alpha,
        "hyperparameters": canonical_json(spec.hyperparameters),
        "spec": canonical_json(dump),
        "best_epoch": result.best_epoch,
        "converged": result.converged,
        "facts": _json({name: value for name, value in result.facts.items() if not name.endswith("_s")}),
        "error_kind": error.get("kind"),
        "error_message": error.get("message"),
        "error_traceback": error.get("traceback"),
        **{name: measures.get(name) for name in ("wall_s", "cpu_s", "peak_rss_bytes", "host", "device")},
        "versions": _json(measures.get("versions", {})),
        "timings": _json({name: value for name, value in result.facts.items() if name.endswith("_s")}),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    columns = {name: pa.array([scalars[name]], type=kind) for name, kind in _SCALARS.items()}
    for metric in spec.metrics:
        columns[f"valid_{metric}"] = pa.array([result.valid.get(metric)], type=pa.float64())
        columns[f"test_{metric}"] = pa.array([result.test.get(metric)], type=pa.float64())
    for name in dict.fromkeys(name for epoch in result.epochs for name in epoch):
        values = [epoch.get(name) for epoch in result.epochs]
        kind = pa.int32() if name in ("epoch", "phase") else pa.float64()
        columns[f"epoch:{name}"] = pa.array([values], type=pa.list_(kind), from_pandas=False)
    for name, array in result.users.items():
        columns[f"user:{name}"] = _list_of_one(np.asarray(array))
    if result.recommended is not None:
        columns["recommended"] = _list_of_one(result.recommended.ravel())
        columns["recommended_k"] = pa.array([result.recommended.shape[1]], type=pa.int32())
    return pa.table(columns, metadata={"llmkt_ledger": str(SCHEMA_VERSION)})


def scalar_columns(schema: pa.Schema) -> list[str]:
    """Returns the names of the columns that belong to the trials table."""
    return [name for name in schema.names if ":" not in name and not name.startswith("recommended")]


def epochs_frame(row: pa.Table) -> pd.DataFrame:
    """Returns the epochs of a one-row table: trial_key, epoch, phase, losses, `valid_<metric>`, duration_s."""
    columns = {name.partition(":")[2]: row.column(name)[0].values.to_numpy(zero_copy_only=False) for name in _filled(row, "epoch:")}
    frame = pd.DataFrame(columns)
    frame.insert(0, "trial_key", row.column("trial_key")[0].as_py())
    return frame


def users_frame(row: pa.Table) -> pd.DataFrame:
    """Returns the per-user metrics of a one-row table: trial_key, user (int32 index), one float64 column a metric."""
    columns = {name.partition(":")[2]: row.column(name)[0].values.to_numpy(zero_copy_only=False) for name in _filled(row, "user:")}
    frame = pd.DataFrame(columns)
    frame.insert(0, "trial_key", row.column("trial_key")[0].as_py())
    return frame


def recommended_array(row: pa.Table) -> np.ndarray:
    """Returns the top-k lists of a one-row table, int32 `(n_evaluated, k)`, `(0, 0)` where there are none."""
    if not _filled(row, "recommended"):
        return np.empty((0, 0), dtype=np.int32)
    flat = row.column("recommended")[0].values.to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.int32).reshape(-1, row.column("recommended_k")[0].as_py())


def _filled(row: pa.Table, prefix: str) -> list[str]:
    return [name for name in row.column_names if name.startswith(prefix) and row.column(name)[0].is_valid]


def _list_of_one(values: np.ndarray) -> pa.Array:
    """Returns a list array with `values` `(n,)` as its only element, without a copy through Python objects."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], type=pa.int32()), pa.array(values))


def _json(value: Mapping[str, Any]) -> str:
    """Returns JSON that keeps NaN as null: facts may hold a ratio that was never defined."""
    return json.dumps(_finite(value), sort_keys=True, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
