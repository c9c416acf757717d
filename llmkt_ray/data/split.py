"""The frozen split: read, filter, divide and thin once, store as the one artifact that every later stage reads."""

import time
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.assign import TRAIN, divide, thin
from llmkt_ray.data.catalog import load_raw
from llmkt_ray.data.check import part_problems, table_problems
from llmkt_ray.data.encode import Encoded, encode, filtered
from llmkt_ray.data.fields import domain_fields
from llmkt_ray.data.known import KNOWN, Counts, count_warnings
from llmkt_ray.data.prepared import PARTS, PreparedData
from llmkt_ray.data.raw import RawDataset
from llmkt_ray.data.source import locate
from llmkt_ray.errors import DatasetError
from llmkt_ray.seeds import content_key, derive_seed
from llmkt_ray.study import DatasetConfig

SPLIT_VERSION = 2
"""Part of every key; raised whenever the same inputs would give another split."""


def split_key(config: DatasetConfig, *, study_seed: int, repetition: int, train_share: float) -> str:
    """Returns the content key of a split: of the source's bytes, every rule applied to them, and the seed.

    Where the files lie does not matter; the order of rows in them changes the key, though not which rows are test.

    Raises:
        DatasetError: the source cannot be found.
    """
    return content_key(_inputs(config, study_seed, repetition, train_share))


def prepare(config: DatasetConfig, *, study_seed: int, repetition: int = 0, train_share: float = 1.0, store: ArtifactStore) -> PreparedData:
    """Returns the frozen split of a dataset, computed once and stored as artifact kind "split".

    Args:
        config: the dataset and its rules.
        study_seed: the study's seed; the split's own is derived from it, the dataset's name and the repetition.
        repetition: which of `config.split.repetitions` splits, from 0.
        train_share: share of each user's train rows that models may learn from, in (0, 1].
        store: where the artifact is kept.

    Raises:
        DatasetError: the dataset cannot be used; every problem is named.
        StorageError: the artifact cannot be written.
    """
    inputs = _inputs(config, study_seed, repetition, train_share)
    key = content_key(inputs)
    if store.find("split", key) is None:
        started = time.perf_counter()
        arrays, tables, facts = compute_split(load_raw(config), config, study_seed, repetition, train_share)
        store.save(
            "split",
            key,
            inputs=inputs,
            arrays=arrays,
            tables=tables,
            documents={"facts": facts},
            versions={"numpy": np.__version__, "pyarrow": pa.__version__},
            notes=facts["notes"],
            wall_s=time.perf_counter() - started,
        )
    return PreparedData.load(store, key)


def unstored(raw: RawDataset, config: DatasetConfig, *, study_seed: int, repetition: int = 0, train_share: float = 1.0) -> PreparedData:
    """Returns the split that `prepare` would store, its key empty: for a look at what a study will read.

    Raises:
        DatasetError: the dataset cannot be used; every problem is named.
    """
    arrays, tables, facts = compute_split(raw, config, study_seed, repetition, train_share)
    return PreparedData.assemble("", arrays, tables["users"], tables["items"], facts)


def compute_split(
    raw: RawDataset, config: DatasetConfig, study_seed: int, repetition: int, train_share: float
) -> tuple[dict[str, np.ndarray], dict[str, pa.Table], dict[str, Any]]:
    """Returns the arrays, tables and facts of a split artifact.

    Raises:
        DatasetError: the dataset cannot be used; every problem is named.
    """
    _refuse(table_problems(raw, config))
    everything = encode(raw.interactions)
    rows = filtered(everything, config.filters)
    positive = rows.positive(config.positive)
    parts = divide(rows, config.split, positive, derive_seed(study_seed, "split", config.name, repetition))
    _refuse(part_problems(rows, config, parts))
    kept = thin(rows, parts == TRAIN, train_share, derive_seed(study_seed, "thin", config.name, repetition))

    by_time = (rows.user,) if rows.timestamp is None else (rows.timestamp, rows.user)
    order = np.lexsort(by_time)  # stable: rows of one user and one time stay in the order of the source
    arrays: dict[str, np.ndarray] = {}
    for code, part in enumerate(PARTS):
        chosen = order[parts[order] == code]
        arrays[f"{part}_user"] = rows.user[chosen]
        arrays[f"{part}_item"] = rows.item[chosen]
        arrays[f"{part}_rating"] = np.ones(len(chosen), np.float32) if rows.rating is None else rows.rating[chosen]
        arrays[f"{part}_timestamp"] = np.full(len(chosen), np.nan) if rows.timestamp is None else rows.timestamp[chosen]
        arrays[f"{part}_positive"] = positive[chosen]
        if rows.count is not None:
            arrays[f"{part}_count"] = rows.count[chosen]
        if part == "train":
            arrays["train_kept"] = kept[chosen]
    tables = {"users": _aligned(raw.users, "user_id", rows.user_tokens), "items": _aligned(raw.items, "item_id", rows.item_tokens)}
    notes = _notes(raw, config, everything, rows, arrays)
    notes["warnings"] += _coverage_warnings(raw, rows)
    if config.split.kind == "leave_one_out" and repetition:
        notes["warnings"].append(
            f"repetition {repetition} of leave_one_out differs from the first split only where a user's last rows have equal timestamps: "
            "it is no independent replicate"
        )
    notes["item_fields"] = {field.name: round(field.coverage, 4) for field in domain_fields(raw.domain, tables["items"])}
    return arrays, tables, {"name": config.name, "domain": raw.domain, "notes": notes}


def _inputs(config: DatasetConfig, study_seed: int, repetition: int, train_share: float) -> dict[str, Any]:
    """Returns everything that determines a split; ratios only where the kind uses them."""
    source = locate(config)
    rule = config.split
    return {
        "version": SPLIT_VERSION,
        "name": config.name,
        "domain": config.domain,
        "source": {"format": source.format, "digest": source.digest},
        "positive": config.positive.model_dump(mode="json"),
        "filters": config.filters.model_dump(mode="json"),
        "split": {"kind": rule.kind, "ratios": list(rule.ratios) if rule.kind in ("random", "time") else None},
        "study_seed": study_seed,
        "repetition": repetition,
        "train_share": train_share,
    }


def _refuse(problems: list[str]) -> None:
    if problems:
        raise DatasetError("; ".join(problems))


def _aligned(features: pa.Table, id_name: str, tokens: pa.Array) -> pa.Table:
    """Returns the features in the order of `tokens`, one row each, nulls where there are none."""
    index = pc.index_in(tokens, features.column(id_name).combine_chunks())
    columns = {name: features.column(name).take(index) for name in features.column_names if name != id_name}
    return pa.table({id_name: tokens, **columns})


def _coverage_warnings(raw: RawDataset, rows: Encoded) -> list[str]:
    """Returns warnings where a feature table is there but does not describe every user or item: often ids of another numbering."""
    warnings = []
    for what, features, tokens in (("user", raw.users, rows.user_tokens), ("item", raw.items, rows.item_tokens)):
        missing = len(tokens) - pc.sum(pc.is_in(tokens, features.column(f"{what}_id").combine_chunks())).as_py()
        if len(features) and missing:
            warnings.append(
                f"the {what}s table has no row for {missing:,} of {len(tokens):,} {what}s; check that its ids are those of the interactions"
            )
    return warnings


def _notes(raw: RawDataset, config: DatasetConfig, everything: Encoded, rows: Encoded, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the facts about a split that a report shows: counts, sparsity, provenance and warnings."""
    n_users, n_items = len(rows.user_tokens), len(rows.item_tokens)
    before = Counts(len(everything.user_tokens), len(everything.item_tokens), len(everything))
    after = Counts(n_users, n_items, len(rows))
    kept = arrays["train_kept"]
    part_users = {part: arrays[f"{part}_user"] for part in PARTS}
    positive_users = {part: part_users[part][arrays[f"{part}_positive"]] for part in PARTS}
    learnt = part_users["train"][kept]
    learnt_positive = part_users["train"][kept & arrays["train_positive"]]
    cells = n_users * n_items

    def without(users: np.ndarray) -> int:
        return n_users - len(np.unique(users))

    return {
        "source_digest": raw.digest,
        "raw": vars(before),
        "filtered": vars(after),
        "paper": vars(paper) if (paper := KNOWN[config.name].paper if config.name in KNOWN else None) else None,
        "n_users": n_users,
        "n_items": n_items,
        "rows": {part: len(part_users[part]) for part in PARTS} | {"train_kept": int(kept.sum())},
        "positives": {part: len(positive_users[part]) for part in PARTS} | {"train_kept": len(learnt_positive)},
        "users_without_train": without(learnt),
        "users_without_train_positives": without(learnt_positive),
        "users_without_valid_positives": without(positive_users["valid"]),
        "users_without_test_positives": without(positive_users["test"]),
        "items_without_train": n_items - len(np.unique(arrays["train_item"][kept])),
        "sparsity": {
            "all": 1 - len(rows) / cells,
            "train_full": 1 - len(part_users["train"]) / cells,
            "train": 1 - len(learnt) / cells,
            "train_positives": 1 - len(learnt_positive) / cells,
        },
        "has_ratings": rows.rating is not None,
        "has_counts": rows.count is not None,
        "has_timestamps": rows.timestamp is not None,
        "rating_range": None if rows.rating is None else [float(rows.rating.min()), float(rows.rating.max())],
        "positive": config.positive.model_dump(mode="json"),
        "filters": config.filters.model_dump(mode="json"),
        "split": {"kind": config.split.kind, "ratios": list(config.split.ratios) if config.split.kind in ("random", "time") else None},
        "train_digest": _train_digest(rows, arrays),
        "warnings": [*raw.warnings, *count_warnings(config, before, after)],
    }


def _train_digest(rows: Encoded, arrays: dict[str, np.ndarray]) -> str:
    """Returns the SHA-256 of the full train split's pairs, sorted: what profiles were written from, whatever the seed or file order."""
    pairs = np.sort(arrays["train_user"].astype(np.int64) * len(rows.item_tokens) + arrays["train_item"])
    users, items = (
        rows.user_tokens.take(pa.array(pairs // len(rows.item_tokens))),
        rows.item_tokens.take(pa.array(pairs % len(rows.item_tokens))),
    )
    return sha256("\n".join(pc.binary_join_element_wise(users, items, "\t").to_pylist()).encode()).hexdigest()
