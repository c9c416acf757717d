"""What was run: data, profiles, encoder, models, as sentences and tables."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from llmkt_ray.report.cells import Cell
from llmkt_ray.report.findings import certificate
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import Table
from llmkt_ray.report.text import count, listed, plain

MEASURED = {
    "full": "with full ranking",
    "labelled": "by telling positives from negatives among the rows that users rated",
    "paper_2024": "ranking positives among sampled items",
}
"""Protocol to how test was measured."""


def run_sentences(results: Results, cells: tuple[Cell, ...]) -> list[str]:
    """Returns what was run, in sentences."""
    trials, card = results.trials, results.card
    if not len(trials):
        return ["No trial has a row yet."]
    done, planned = int((trials["status"] == "done").sum()), card.get("planned_trials")
    of_planned = f" of {planned:,} planned" if planned and planned != done else ""
    protocol = (results.study.get("evaluation") or {}).get("protocol", "full")
    axes = "dataset \u00d7 model \u00d7 layer \u00d7 profiles \u00d7 ..."
    sentences = [
        f"{count(done, 'trial')} finished{of_planned}, in {count(len(cells), 'cell')} ({axes}), selected on validation {results.metric}; "
        f"test was opened once a trial, {MEASURED[str(protocol)]}."
    ]
    ended = int((trials["status"] == "pruned").sum())
    if ended:
        sentences.append(
            f"{count(ended, 'suggestion')} of the search ended early in phase 2, behind those of earlier rounds, and untested."
        )
    writers = []
    for entry in _once(card.get("profiles", []), "llm"):
        who = f"by an LLM ({entry['llm']})" if entry.get("is_llm") else f"without an LLM ({entry['llm']}): no LLM wrote these profiles"
        writers.append(f"{who}, leak certificate {certificate(entry)[0]}")
    if writers:
        sentences.append(f"Profiles were written {'; '.join(writers)}.")
    return sentences


def run_tables(results: Results) -> list[Table]:
    """Returns the tables of what was run; those without a row are left out."""
    tables = [_datasets(results), _profiles(results), _targets(results), _models(results)]
    return [table for table in tables if table.rows]


def _datasets(results: Results) -> Table:
    rows = []
    for entry in results.card.get("datasets", []):
        notes = entry.get("notes") or {}
        config: Mapping[str, Any] = next((d for d in results.study.get("datasets", []) if d.get("name") == entry.get("name")), {})
        threshold = (config.get("positive") or {}).get("rating_at_least")
        split = config.get("split") or {}
        ratios = split.get("ratios") if split.get("kind") in ("random", "time") else None
        counts, positives = notes.get("rows") or {}, notes.get("positives") or {}
        rows.append(
            (
                _text(entry.get("name")), str(entry.get("repetition", 0) + 1), f"{entry.get('train_share', 1.0):g}",
                f"{entry.get('n_users') or 0:,}", f"{entry.get('n_items') or 0:,}",
                " / ".join(f"{counts.get(p, 0):,}" for p in ("train", "valid", "test")),
                " / ".join(f"{positives.get(p, 0):,}" for p in ("train", "valid", "test")),
                "every interaction" if threshold is None else f"rating of at least {threshold:g}",
                f"{split.get('kind', 'unknown')}{' ' + '/'.join(f'{r:g}' for r in ratios) if ratios else ''}",
            )
        )  # fmt: skip
    columns = (
        "dataset",
        "split",
        "train share",
        "users",
        "items",
        "rows train / valid / test",
        "positives train / valid / test",
        "a positive is",
        "rule",
    )
    return Table("Data", columns, (False, True, True, True, True, True, True, False, False), tuple(rows))


def _profiles(results: Results) -> Table:
    rows = []
    for entry in results.card.get("profiles", []):
        status, reason = certificate(entry)
        coverage = (entry.get("notes") or {}).get("coverage")
        rows.append(
            (
                _text(entry.get("llm")), _text(entry.get("dataset")), "an LLM" if entry.get("is_llm") else "no LLM wrote these profiles",
                f"{coverage:.1%}" if isinstance(coverage, float | int) else "unknown", status, reason,
            )
        )  # fmt: skip
    columns = ("profiles", "dataset", "written by", "users with a text", "leak certificate", "why")
    return Table("Profiles", columns, (False, False, False, True, False, False), tuple(rows))


def _targets(results: Results) -> Table:
    embedded = {
        (entry.get("split_key"), entry.get("llm"), entry.get("encoder")): entry.get("notes") or {}
        for entry in results.card.get("embeddings", [])
    }
    rows = []
    for entry in results.card.get("targets", []):
        notes = entry.get("notes") or {}
        kept = [plain(notes[n], 3) if isinstance(notes.get(n), float | int) else "\u2013" for n in ("trustworthiness", "knn_overlap")]
        texts = embedded.get((entry.get("split_key"), entry.get("llm"), entry.get("encoder")), {})
        unread = [f"{texts[n]:.1%}" if isinstance(texts.get(n), float | int) else "\u2013" for n in ("texts_cut", "tokens_cut")]
        rows.append(
            (
                _text(entry.get("dataset")),
                _text(entry.get("llm")),
                _text(entry.get("encoder")),
                *unread,
                _text(entry.get("reduction")),
                str(entry.get("dims")),
                *kept,
            )
        )
    columns = (
        "dataset", "profiles", "encoder", "texts cut by it", "tokens not read", "reducer", "dims", "trustworthiness (0 to 1)",
        "kNN overlap (0 to 1)",
    )  # fmt: skip
    numeric = (False, False, False, True, True, False, True, True, True)
    return Table("Embeddings and targets", columns, numeric, tuple(dict.fromkeys(rows)))


def _models(results: Results) -> Table:
    trials = results.trials
    wanted = ["dataset", "model", "epochs", "batch_size", "learning_rate", "weight_decay", "hyperparameters"]
    if not len(trials) or any(column not in trials for column in wanted):
        return Table("Models", (), (), ())
    mine = trials[trials["arm"] != "reference"]
    layers = mine.dropna(subset=["layer"]).groupby(["dataset", "model"])["layer"].unique()
    rows = []
    for values in mine[wanted].drop_duplicates().itertuples(index=False):
        row = dict(zip(wanted, values, strict=True))
        names = sorted(str(name) for name in layers.get((row["dataset"], row["model"]), []))
        settings = json.loads(row["hyperparameters"] or "{}")
        rows.append(
            (
                str(row["model"]), str(row["dataset"]), listed(names) or "\u2013", f"{row['epochs']:g}", f"{row['batch_size']:g}",
                f"{row['learning_rate']:g}", f"{row['weight_decay']:g}",
                ", ".join(f"{k} {v}" for k, v in settings.items()) or "RecBole's defaults",
            )
        )  # fmt: skip
    columns = ("model", "dataset", "tapped layers", "epochs", "batch size", "learning rate", "weight decay", "hyper-parameters")
    return Table("Models", columns, (False, False, False, True, True, True, True, False), tuple(sorted(rows)))


def _once(entries: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return list({entry.get(name): entry for entry in reversed(entries)}.values())[::-1]


def _text(value: Any) -> str:
    return "\u2013" if value is None or (isinstance(value, float) and pd.isna(value)) else str(value)
