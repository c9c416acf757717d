"""The ledger's rows as runs of an MLflow experiment, for teams that look there.

The driver copies rows that MLflow does not have yet, some seconds after they appear and once at the end. What is there is told
by each run's tag `trial_key`, so nothing is doubled, and what a broken connection left out the next run brings. A trial never
waits for MLflow, and MLflow being away never fails one.
"""

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd

from llmkt_ray.results.ledger import Ledger

INTERVAL_S = 10.0
PARAMETERS = (
    "dataset", "model", "arm", "alpha", "layer", "loss", "projection", "balance", "schedule", "switch", "handover", "optimizer",
    "seed_index", "epochs", "batch_size", "learning_rate", "weight_decay", "llm", "encoder", "reduction", "dims", "train_share",
)  # fmt: skip
MEASURES = ("best_epoch", "wall_s", "cpu_s", "peak_rss_bytes")
_BATCH = 500


class MlflowMirror:
    """One study's experiment.

    Args:
        folder: the results folder.
        study: the study's name, and the experiment's.
        uri: MLflow's tracking URI.
    """

    def __init__(self, folder: str, study: str, uri: str) -> None:
        _set_up()
        from mlflow.tracking import MlflowClient  # here: only studies that ask for it pay for the import

        self._client, self._study, self._ledger = MlflowClient(uri), study, Ledger(folder)
        self._experiment: str | None = None
        self._there: dict[str, bool] = {}

    def sync(self) -> int:
        """Copies the rows that MLflow does not have; returns how many those were.

        Raises:
            MlflowException: the server does not answer or refuses.
        """
        if self._experiment is None:
            self._experiment = self._open()
        trials = self._ledger.trials()
        failed = trials["status"] == "failed"
        new = trials[[self._there.get(key) != bad for key, bad in zip(trials["trial_key"], failed, strict=True)]]
        if new.empty:
            return 0
        epochs = self._ledger.epochs(set(new["trial_key"]))
        by_trial = dict(iter(epochs.groupby("trial_key"))) if len(epochs) else {}
        for row in new.to_dict("records"):
            self._copy(row, by_trial.get(row["trial_key"]))
            self._there[row["trial_key"]] = row["status"] == "failed"
        return len(new)

    def _open(self) -> str:
        """Returns the experiment's id, made if absent, with the trials noted that are there."""
        found = self._client.get_experiment_by_name(self._study)
        experiment = str(found.experiment_id) if found else str(self._client.create_experiment(self._study))
        token: str | None = None
        while True:
            page = self._client.search_runs([experiment], max_results=1000, page_token=token)
            for run in page:
                if run.info.status in ("FINISHED", "FAILED"):
                    key, bad = run.data.tags.get("trial_key", ""), run.info.status == "FAILED"
                    self._there[key] = bad and self._there.get(key, True)  # a failed trial may have been tried again
                else:  # a copy that was broken off: made anew
                    self._client.delete_run(run.info.run_id)
            token = page.token
            if not token:
                return experiment

    def _copy(self, row: dict[str, Any], epochs: pd.DataFrame | None) -> None:
        from mlflow.entities import Metric, Param, RunTag

        name = " ".join(
            str(row[part]) for part in ("dataset", "model", "arm", "alpha", "layer", "seed_index") if not _is_missing(row[part])
        )
        run = self._client.create_run(self._experiment, run_name=name, tags={"trial_key": row["trial_key"]}).info.run_id
        metrics = [Metric(key, value, 0, int(step)) for step, key, value in _metrics(row, epochs)]
        parameters = [Param(key, str(row[key])[:500]) for key in PARAMETERS if key in row and not _is_missing(row[key])]
        tags = [RunTag("study_key", row["study_key"]), RunTag("status", row["status"])]
        if not _is_missing(row["error_message"]):
            tags.append(RunTag("error", f"{row['error_kind']}: {row['error_message']}"[:5000]))
        self._client.log_batch(run, params=parameters, tags=tags)
        for begin in range(0, len(metrics), _BATCH):
            self._client.log_batch(run, metrics=metrics[begin : begin + _BATCH])
        self._client.set_terminated(run, "FINISHED" if row["status"] != "failed" else "FAILED")


@contextmanager
def mirrored(folder: str, study: str, uri: str | None, complain: Callable[[str], None]) -> Iterator[None]:
    """Copies rows to MLflow for as long as the block lasts, and what is left at its end; nothing where `uri` is None.

    Args:
        folder: the results folder.
        study: the study's name.
        uri: MLflow's tracking URI.
        complain: is told in one sentence if MLflow cannot be used; the block goes on.
    """
    if uri is None:
        yield
        return
    stop, said, mirrors = threading.Event(), list[str](), list[MlflowMirror]()

    def once() -> None:
        try:
            if not mirrors:
                mirrors.append(MlflowMirror(folder, study, uri))
            mirrors[0].sync()
        except Exception as error:  # noqa: BLE001 - MLflow and its transport raise what they like; the sweep does not depend on it
            if not said:
                said.append(str(error))
                complain(f"MLflow at {uri} does not take the results ({str(error)[:300]}); the study goes on, run it again to send them")

    def watch() -> None:
        while not stop.wait(INTERVAL_S):
            once()

    thread = threading.Thread(target=watch, name="llmkt-mlflow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        said.clear()
        once()


def uri_problem(uri: str) -> str | None:
    """Returns why MLflow does not understand a tracking URI, or None; no server is asked and nothing is made."""
    _set_up()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry  # its client would make a SQLite file's folders

    try:
        _tracking_store_registry.get_store_builder(uri)
    except MlflowException:
        known = ", ".join(sorted(filter(None, _tracking_store_registry._registry)))
        return f"tracking.mlflow {uri!r} is no tracking URI that MLflow understands; give a folder, or one that begins with one of: {known}"
    return None


def _set_up() -> None:
    """Tells MLflow, before it is imported, what it may say and to whom."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the machine but to the server that was named
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for the study's summary
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)  # what matters of it is told in one sentence


def _metrics(row: dict[str, Any], epochs: pd.DataFrame | None) -> Iterator[tuple[int, str, float]]:
    """Yields (step, name, value) of a trial: its epochs, then its outcome at the selected epoch."""
    for epoch in [] if epochs is None else epochs.to_dict("records"):
        for name, value in epoch.items():
            if name not in ("trial_key", "epoch") and not _is_missing(value):
                yield int(epoch["epoch"]), f"epoch/{_plain(name)}", float(value)
    for name, value in row.items():
        if (name.startswith(("valid_", "test_")) or name in MEASURES) and not _is_missing(value):
            yield int(row["best_epoch"] or 0), _plain(name), float(value)


def _plain(name: str) -> str:
    """Returns a metric's name as MLflow allows it: NDCG@10 is NDCG_at_10."""
    return name.replace("@", "_at_")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
