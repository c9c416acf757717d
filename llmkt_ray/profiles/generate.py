"""Profiles of one split by one engine, made once and stored (artifact kind "profiles")."""

import time
from dataclasses import asdict
from typing import Any

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.base import Progress
from llmkt_ray.profiles.engines.registry import engine_of
from llmkt_ray.profiles.table import KIND, Profiles, one_row_per_user
from llmkt_ray.seeds import content_key, derive_seed
from llmkt_ray.study import ProfileConfig


def profiles_key(config: ProfileConfig, data_key: str, study_seed: int) -> str:
    """Returns the key of the profiles: of the split, of what the engine is, and of the seed where it draws.

    Raises:
        ProfileError: the engine cannot work as configured (no such file, no such model...).
    """
    return content_key(_inputs(config, data_key, study_seed))


def _inputs(config: ProfileConfig, data_key: str, study_seed: int) -> dict[str, Any]:
    engine = engine_of(config)
    # Only a language model draws: a template or a file must not be made anew for another seed.
    return {"split": data_key, "engine": engine.identity(), "seed": study_seed if engine.draws else None}


def _silent(done: int, total: int) -> None:
    """Reports no progress."""


def generate(config: ProfileConfig, data: PreparedData, store: ArtifactStore, *, study_seed: int, progress: Progress = _silent) -> Profiles:
    """Returns the profiles of a split, from the store where they are there already.

    Raises:
        ProfileError: they cannot be written, a user would have no row, or too few users would have a text.
        StorageError: they cannot be stored.
    """
    key = profiles_key(config, data.key, study_seed)
    if store.find(KIND, key) is not None:
        return Profiles.load(store, key)
    started = time.monotonic()
    engine = engine_of(config)
    written = engine.write(data, derive_seed(study_seed, KIND, key), progress)
    table = one_row_per_user(written.table, data.user_tokens)
    with_text = len(table) - table.column("profile").null_count
    if with_text == 0:
        reasons = sorted(set(table.column("error").to_pylist()))[:3]
        raise ProfileError(f"no user of {data.name!r} has a profile from {config.label!r}: {'; '.join(map(str, reasons))}")
    notes = {
        **written.notes,
        "is_llm": engine.is_llm,
        "certificate": asdict(written.certificate),
        "users": len(table),
        "with_profile": with_text,
        "coverage": with_text / len(table),
    }
    store.save(
        KIND,
        key,
        inputs=_inputs(config, data.key, study_seed),
        tables={"profiles": table},
        notes=notes,
        wall_s=time.monotonic() - started,
    )
    return Profiles.load(store, key)
