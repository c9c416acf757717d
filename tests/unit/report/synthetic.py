"""Results folders with planted effects, written through the real ledger and card: what the report's tests and pictures are made from."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmkt_ray.artifacts import ArtifactStore, FileStore
from llmkt_ray.profiles.table import ProfileRow, as_table
from llmkt_ray.report.export import slug
from llmkt_ray.results.card import CARD, write_card
from llmkt_ray.results.ledger import PARTS, ROWS_A_GROUP, Ledger
from llmkt_ray.results.rows import to_row
from llmkt_ray.seeds import content_key
from llmkt_ray.study import ScheduleConfig, StudyConfig
from llmkt_ray.sweep.plan import selection_window
from llmkt_ray.training.spec import TrialResult, TrialSpec

PART = 500
METRICS = ("NDCG@10", "Recall@10", "Hit@10", "MRR@10")
TREATED_CURVE = {0.3: 0.03, 0.5: 0.06, 0.7: 0.05}


def _certificate(status: str) -> dict[str, Any]:
    return {"status": status, "pairs": 4242, "leaks": 0, "foreign": 0, "reason": f"planted: {status}"}


@dataclass(frozen=True)
class World:
    """A study and the truth behind its numbers; effects are relative to alpha0."""

    name: str = "synthetic"
    datasets: tuple[str, ...] = ("ml-1m",)
    models: dict[str, float] = field(default_factory=lambda: {"MultiVAE": 0.21, "SimpleX": 0.17})
    llms: tuple[str, ...] = ("gpt-4o-mini",)
    engine: str = "file"
    layers: tuple[str, ...] = ("encoder.1",)
    reductions: tuple[str, ...] = ("umap",)
    dims: tuple[int, ...] = (64,)
    encoders: tuple[str, ...] = ("all-MiniLM-L6-v2",)
    losses: tuple[str, ...] = ("mse",)
    train_shares: tuple[float, ...] = (1.0,)
    schedules: tuple[dict[str, Any], ...] = ({},)
    arms: tuple[str, ...] = ("baseline", "alpha0", "shuffled", "template")
    alphas: tuple[float, ...] = (0.3, 0.5, 0.7)
    effects: dict[str, float] = field(default_factory=lambda: {"baseline": -0.01, "alpha0": 0.0, "shuffled": 0.01, "template": 0.02})
    treated: Callable[[str, float, str], float] = lambda model, alpha, layer: TREATED_CURVE.get(alpha, 0.04)
    moved: Callable[[TrialSpec], float] = lambda spec: 0.0
    """What a treated trial gains beside `treated`, by its factors."""
    wall: Callable[[TrialSpec], float] = lambda spec: 41.5
    references: dict[str, float] = field(default_factory=lambda: {"Pop": 0.09, "ItemKNN": 0.16, "EASE": 0.2})
    seeds: int = 3
    n_users: int = 400
    epochs: int = 20
    splits: int = 1
    seed_sd: float = 0.008
    is_llm: bool = True
    certificate: str = "verified"
    converged: Callable[[str, str, int], bool | None] = lambda model, arm, seed: True
    fails: Callable[[TrialSpec], str | None] = lambda spec: None
    curve: Callable[[TrialSpec, int, float], float] | None = None
    gainers: Callable[[int], bool] = lambda user: True
    missing: Callable[[int], bool] = lambda user: False
    n_items: int = 10
    k: int = 5
    gradient_ratio: float = 0.4
    knn_overlap: float = 0.55
    profile_notes: dict[str, Any] = field(default_factory=dict)
    description: str = "Synthetic results with planted effects."
    extra: dict[str, Any] = field(default_factory=dict)


def study_of(world: World) -> StudyConfig:
    profiles = [{"llm": world.engine, "name": llm, **({"path": f"{llm}.parquet"} if world.engine == "file" else {})} for llm in world.llms]
    return StudyConfig.model_validate(
        {
            "name": world.name,
            "description": world.description,
            "datasets": [{"name": d, "positive": {"rating_at_least": 4}, "split": {"repetitions": world.splits}} for d in world.datasets],
            "profiles": profiles,
            "models": [{"name": m, "epochs": world.epochs} for m in world.models],
            "transfer": {"alphas": list(world.alphas), "layers": list(world.layers)},
            "seeds": world.seeds,
            "evaluation": {"metrics": list(METRICS), "references": list(world.references)},
            **world.extra,
        }
    )


def specs(world: World, study: StudyConfig) -> list[TrialSpec]:
    made = []
    for dataset in world.datasets:
        for repetition, share in product(range(world.splits), world.train_shares):
            split = {"train_share": share, "split_repetition": repetition}
            common = {
                "study_seed": study.seed, "dataset": dataset, "split_key": split_name(dataset, repetition, share), "batch_size": 512,
                "learning_rate": 0.001, "metrics": METRICS, "select_on": "NDCG@10",
            }  # fmt: skip
            for reference in world.references:
                made.append(TrialSpec(**common, model=reference, epochs=1, arm="reference", seed_index=0, factors=split))
            for model, schedule, seed in product(world.models, map(ScheduleConfig.model_validate, world.schedules), range(world.seeds)):
                base = {**common, "model": model, "epochs": world.epochs, "seed_index": seed, "schedule": schedule}
                for arm in world.arms:
                    if arm in ("baseline", "alpha0"):
                        window = {"schedule": selection_window(schedule)} if arm == "baseline" else {}
                        made.append(TrialSpec(**{**base, **window}, arm=arm, factors=split))
                alphas = (1.0,) if schedule.kind == "pretrain" else world.alphas
                axes = product(world.llms, world.encoders, world.reductions, world.dims, world.layers, world.losses)
                for llm, encoder, reduction, dims, layer, loss in axes:
                    factors = {**split, "llm": llm, "encoder": encoder, "reduction": reduction, "dims": dims}
                    tapped = {
                        **base, "layer": layer, "targets_key": targets_name(llm, repetition, encoder, reduction, dims),
                        "balance": "initial", "loss": loss, "factors": factors,
                    }  # fmt: skip
                    for arm in world.arms:
                        if arm not in ("baseline", "alpha0"):
                            made.append(TrialSpec(**tapped, arm=arm, alpha=alphas[0] if len(alphas) == 1 else 0.5))
                    made += [TrialSpec(**tapped, arm="treated", alpha=alpha) for alpha in alphas]
    return list({spec.key: spec for spec in made}.values())


def split_name(dataset: str, repetition: int, share: float = 1.0) -> str:
    return f"split-{dataset}-{repetition}" + ("" if share == 1 else f"-{share:g}")


def targets_name(llm: str, repetition: int, encoder: str, reduction: str, dims: int) -> str:
    plain = (encoder, reduction, dims) == ("all-MiniLM-L6-v2", "umap", 64)
    return f"targets-{llm}-{repetition}" + ("" if plain else f"-{encoder}-{reduction}-{dims}")


def result_of(world: World, spec: TrialSpec) -> TrialResult:
    measures = {
        "wall_s": world.wall(spec), "cpu_s": world.wall(spec) - 1.4, "peak_rss_bytes": 900_000_000, "host": "node-1", "device": "cpu",
        "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    message = world.fails(spec)
    if message is not None:
        error = {
            "kind": "TrainingError",
            "message": message,
            "traceback": f"Traceback (most recent call last):\n  TrainingError: {message}",
        }
        return TrialResult(spec=spec, status="failed", measures=measures, error=error)
    level = world.references.get(spec.model) if spec.arm == "reference" else world.models[spec.model]
    assert level is not None
    effect = {"reference": 0.0, **world.effects}.get(spec.arm)
    if spec.arm == "treated":
        effect = world.treated(spec.model, spec.alpha, spec.layer or "") + world.moved(spec)
    assert effect is not None
    gains = np.asarray([effect * world.gainers(user) for user in range(world.n_users)])
    users = _user_values(world, spec, level * (1 + gains))
    missing = np.asarray([world.missing(user) for user in range(world.n_users)])
    users = {metric: np.where(missing, np.nan, values) for metric, values in users.items()}
    test = {metric: float(np.nanmean(values)) for metric, values in users.items()}
    epochs = () if spec.arm == "reference" else _epochs(world, spec, test["NDCG@10"])
    converged = None if spec.arm == "reference" else world.converged(spec.model, spec.arm, spec.seed_index)
    return TrialResult(
        spec=spec,
        status="done",
        valid={metric: value * 0.97 for metric, value in test.items()},
        test=test,
        best_epoch=0 if spec.arm == "reference" else (world.epochs - 3 if converged else world.epochs),
        converged=converged,
        epochs=epochs,
        users={"user": np.arange(world.n_users, dtype=np.int32), **users},
        recommended=_lists(world, spec),
        facts={"phase1_epochs": world.epochs // 2, "beta": 1.7, "transfer_steps": 120},
        measures=measures,
    )


def _lists(world: World, spec: TrialSpec) -> np.ndarray:
    """Equal lists for everyone, which say the arm; in larger catalogues lists that are different, and popular items first."""
    if world.n_items == 10:
        return np.tile(np.roll(np.arange(10, dtype=np.int32), len(spec.arm))[: world.k], (world.n_users, 1))
    rng = np.random.default_rng([3, int(spec.key[:8], 16)])
    return (rng.random((world.n_users, world.k)) ** 3 * world.n_items).astype(np.int32)


def _user_values(world: World, spec: TrialSpec, mean: np.ndarray) -> dict[str, np.ndarray]:
    """Per-user metrics: a user's level shared by all arms and seeds, a seed's level shared by its arms, and noise of the trial."""
    of_user = np.random.default_rng([7, len(spec.dataset), spec.factors.get("split_repetition") or 0]).gamma(2.0, 0.5, world.n_users)  # type: ignore[list-item]
    of_seed = np.random.default_rng([11, spec.seed_index, len(spec.model)]).normal(0, world.seed_sd)
    # Not the trial's key: that changes with our version and the libraries', and so would what the tests see.
    names = ("dataset", "split_key", "model", "arm", "alpha", "layer", "targets_key", "loss", "seed_index")
    identity = [*(getattr(spec, name) for name in names), spec.schedule.model_dump(mode="json", exclude={"freeze"})]
    rng = np.random.default_rng([int(content_key(identity)[:8], 16)])
    of_trial = rng.normal(0, world.seed_sd)
    values = mean * of_user / of_user.mean() * (1 + of_seed + of_trial) + rng.normal(0, 0.05, world.n_users)
    ndcg = np.clip(values, 0, 1)
    return {"NDCG@10": ndcg, "Recall@10": np.clip(ndcg * 1.1, 0, 1), "Hit@10": (ndcg > 0.1).astype(float), "MRR@10": ndcg * 0.8}


def _epochs(world: World, spec: TrialSpec, final: float) -> tuple[dict[str, float | int], ...]:
    rows: list[dict[str, float | int]] = []
    for epoch in range(1, world.epochs + 1):
        phase = 2 if spec.arm == "baseline" or epoch > world.epochs // 2 else 1
        on = phase == 1 and spec.alpha > 0
        value = final * (1 - np.exp(-epoch / (world.epochs / 5)))
        if world.curve is not None:
            value = world.curve(spec, epoch, value)
        rows.append(
            {
                "epoch": epoch, "phase": phase, "loss_model": 4.0 / epoch**0.4,
                "loss_transfer": 1.2 / epoch**0.3 if on else float("nan"),
                "gradient_ratio": world.gradient_ratio if on else float("nan"),
                **{f"valid_{m}": value * 0.97 for m in METRICS}, "duration_s": 2.0,
            }
        )  # fmt: skip
    return tuple(rows)


def write(folder: Path, world: World | None = None, *, keep: Callable[[TrialSpec], bool] = lambda spec: True, single: bool = False) -> Path:
    """Writes the results folder of a world and returns it.

    Args:
        folder: where.
        world: what is true in it.
        keep: trials that it refuses have not run yet.
        single: one file a trial, as a running study has them; otherwise compacted parts, which are written faster.
    """
    world = world or World()
    study = study_of(world)
    planned = specs(world, study)
    run = [spec for spec in planned if keep(spec)]
    if single:
        ledger = Ledger(folder)
        for spec in run:
            ledger.record(result_of(world, spec), study.key)
    else:
        (folder / PARTS).mkdir(parents=True)
        for at in range(0, len(run), PART):
            _write_part(folder / PARTS / f"{at:06d}.parquet", [to_row(result_of(world, spec), study.key) for spec in run[at : at + PART]])
    splits = [(d, r, share) for d in world.datasets for r in range(world.splits) for share in world.train_shares]
    facts = {
        "datasets": [
            {
                "name": d, "split_key": split_name(d, r, share), "repetition": r, "train_share": share, "n_users": world.n_users,
                "n_items": 3706,
                "notes": {
                    "n_users": world.n_users, "n_items": 3706, "rows": {"train": 70_000, "valid": 10_000, "test": 20_000},
                    "positives": {"train": 40_000, "valid": 5_700, "test": 11_400}, "warnings": [],
                    "split": {"kind": "random", "ratios": [0.7, 0.1, 0.2]}, "positive": {"rating_at_least": 4.0},
                    "sparsity": {"train": 1 - 0.045 * share, "train_full": 0.955, "train_positives": 1 - 0.025 * share, "all": 0.94},
                },
            }
            for d, r, share in splits
        ],
        "profiles": [
            {
                "dataset": d, "split_key": split_name(d, r, share), "llm": llm, "key": f"profiles-{slug(llm)}-{r}", "is_llm": world.is_llm,
                "certificate": _certificate(world.certificate),
                "notes": {"coverage": 0.998, "users": world.n_users, "with_profile": int(world.n_users * 0.998), **world.profile_notes},
            }
            for d, r, share in splits for llm in world.llms
        ],
        "embeddings": [
            {"dataset": d, "split_key": split_name(d, r, share), "llm": llm, "encoder": encoder, "key": f"emb-{llm}-{r}",
             "identity": {"name": encoder, "sha256": "53aa51172d14"}}
            for d, r, share in splits for llm in world.llms for encoder in world.encoders
        ],
        "targets": [
            {"dataset": d, "split_key": split_name(d, r, share), "llm": llm, "encoder": encoder, "reduction": reduction, "dims": dims,
             "key": targets_name(llm, r, encoder, reduction, dims),
             "notes": {"trustworthiness": 0.87, "knn_overlap": world.knn_overlap, "reconstruction_r2": round(1 - 4 / (4 + dims), 3)}}
            for d, r, share in splits for llm in world.llms
            for encoder, reduction, dims in product(world.encoders, world.reductions, world.dims)
        ],
        "cells": [],
        "planned_trials": len(planned),
    }  # fmt: skip
    write_card(folder, study, facts)
    card = json.loads((folder / CARD).read_bytes())
    finished = card["started"] if len(run) == len(planned) else None
    FileStore(folder).write_bytes(CARD, json.dumps({**card, "command": "llmkt run synthetic.yaml", "finished": finished}).encode())
    return folder


def write_artifacts(
    root: Path, world: World, title: Callable[[int], str], text: Callable[[int], str], token: Callable[[int], str] = "u{:05d}".format
) -> None:
    """Writes the split and the profiles of every dataset: the page can name texts and items, and measure beyond accuracy.

    Ten items, the first ones liked by most users in train; the first half of the users have more train rows; everyone has items 3
    and 8 in test. Genders alternate.
    """
    store, n_items = ArtifactStore(root), world.n_items
    half = world.n_users // 2
    liked = {
        u: [i for i in range(n_items) if (u * 7 + i * 3) % 10 < 9 - i or (u < half and i in (2, 5, 6))] or [0] for u in range(world.n_users)
    }
    arrays: dict[str, np.ndarray] = {"train_kept": np.ones(sum(map(len, liked.values())), dtype=np.bool_)}
    for part, items in (("train", liked), ("valid", {key: [9] for key in liked}), ("test", {key: [3, 8] for key in liked})):
        pairs = np.asarray([(u, i) for u, of_user in items.items() for i in of_user], dtype=np.int32)
        arrays |= {
            f"{part}_user": pairs[:, 0], f"{part}_item": pairs[:, 1], f"{part}_rating": np.full(len(pairs), 5, dtype=np.float32),
            f"{part}_timestamp": np.arange(len(pairs), dtype=np.float64), f"{part}_positive": np.ones(len(pairs), dtype=np.bool_),
        }  # fmt: skip
    tokens = [token(k) for k in range(world.n_users)]
    tables = {
        "users": pa.table({"user_id": tokens, "gender": ["F" if k % 2 else "M" for k in range(world.n_users)]}),
        "items": pa.table(
            {
                "item_id": [f"i{k:05d}" for k in range(n_items)],
                "title": [title(k) for k in range(n_items)],
                "genres": [["drama", "comedy", "horror"][k % 3 :] for k in range(n_items)],
            }
        ),
    }
    rows = [ProfileRow(t, text(k), "gpt-4o-mini", "1", history_size=20, attempts=1) for k, t in enumerate(tokens)]
    for dataset in world.datasets:
        facts = {"name": dataset, "domain": "movies", "notes": {"has_ratings": True, "has_timestamps": True}}
        for repetition in range(world.splits):
            store.save("split", f"split-{dataset}-{repetition}", inputs={}, arrays=arrays, tables=tables, documents={"facts": facts})
    for llm in world.llms:
        notes = {"is_llm": True, "certificate": _certificate("verified"), "coverage": 1.0}
        store.save("profiles", f"profiles-{slug(llm)}-0", inputs={}, tables={"profiles": as_table(rows)}, notes=notes)


def change_a_bit(path: Path, column: str) -> None:
    """Changes a bit in what a column of the first row group holds."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunk = next(chunk for chunk in map(group.column, range(group.num_columns)) if chunk.path_in_schema.startswith(column))
    data = bytearray(path.read_bytes())
    first = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    data[first + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(data)


def _write_part(path: Path, tables: list[pa.Table]) -> None:
    """Writes rows as `Ledger.compact` does."""
    schema = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for first in range(0, len(tables), ROWS_A_GROUP):
            group = [schema.empty_table(), *tables[first : first + ROWS_A_GROUP]]
            writer.write_table(pa.concat_tables(group, promote_options="permissive"), row_group_size=ROWS_A_GROUP)
