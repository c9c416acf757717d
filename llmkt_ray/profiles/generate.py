"""Profiles of one split by one engine, made once and stored (artifact kind "profiles")."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llmkt_ray.artifacts import ArtifactStore, installed_versions
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.raw import shown
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.cost import Account, Accounts, cost_of
from llmkt_ray.profiles.engines.base import Job, Progress, silent
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.engines.registry import engine_of
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.quality import quality
from llmkt_ray.profiles.table import KIND, MAKERS, Profiles, one_row_per_user
from llmkt_ray.seeds import content_key, derive_seed
from llmkt_ray.study import BudgetConfig, ProfileConfig, ResourcesConfig, TaskResources


def profiles_key(config: ProfileConfig, data_key: str, study_seed: int, *, leaked: bool = False) -> str:
    """Returns the key of the profiles: of the split, of what the engine is, of the seed where it draws, and of a leak on purpose.

    Raises:
        ProfileError: the engine cannot work as configured (no such file, no such model...).
    """
    return content_key(_inputs(config, data_key, study_seed, leaked))


def _inputs(config: ProfileConfig, data_key: str, study_seed: int, leaked: bool) -> dict[str, Any]:
    engine = engine_of(config)
    # Only a language model draws: a template or a file must not be made anew for another seed.
    inputs = {"split": data_key, "engine": engine.identity(), "seed": study_seed if engine.draws else None}
    return {**inputs, "leaked": True} if leaked else inputs


def generate(
    config: ProfileConfig,
    data: PreparedData,
    store: ArtifactStore,
    *,
    study_seed: int,
    progress: Progress = silent,
    resources: TaskResources = TaskResources(),  # noqa: B008 - frozen
    leaked: bool = False,
    accounts: Accounts | None = None,
) -> Profiles:
    """Returns the profiles of a split, from the store where they are there already.

    Args:
        config: who writes.
        data: the split.
        store: where the artifact goes, and part files while it is made.
        study_seed: of what an engine draws.
        progress: called with (users done, users in all).
        resources: what one engine actor asks of Ray.
        leaked: write from ALL rows, validation and test included: the control arm `leaked` (METHOD.md, section 3) and nothing else.
        accounts: what the study has spent on language models; None: nothing is counted.

    Raises:
        BudgetSpent: the budget ends before they are whole; what was paid for is in part files.
        ProfileError: they cannot be written, a user would have no row, or fewer users than `min_coverage` have a text.
        StorageError: they cannot be stored.
    """
    key = profiles_key(config, data.key, study_seed, leaked=leaked)
    if store.find(KIND, key) is not None:
        check_stored(config, data.name, store, key)
        return Profiles.load(store, key)
    started = time.monotonic()
    engine = engine_of(config, resources)
    parts = Parts(store, key)
    read = data.with_held_out_as_train() if leaked else data
    accounts = accounts or Accounts(ResourcesConfig(), BudgetConfig())
    # What `llmkt plan` said, once more: it is stored beside what was taken.
    speed = accounts.speeds.get(str(config.model))
    planned = cost_of(engine, config, read, accounts.resources, speed) if isinstance(engine, LlmEngine) else None
    account = Account(accounts, config, planned)
    job = Job(derive_seed(study_seed, KIND, key), progress, parts, account.charge)
    written = engine.write(read, job)
    took = account.notes(int(written.notes.get("resumed_rows", 0)))
    table = one_row_per_user(written.table, data.user_tokens)
    with_text = len(table) - table.column("profile").null_count
    notes = {
        **written.notes,
        "is_llm": engine.is_llm,
        "certificate": asdict(written.certificate),
        "users": len(table),
        "with_profile": with_text,
        "coverage": with_text / len(table),
        **took,
        "quality": quality(table, data),
    }
    # Before anything is stored: the part files stay, so that texts that were paid for are there when the cause is mended.
    _check_texts(notes, lambda: table, config, data.name, "raise `attempts`")
    if store.find(KIND, key) is not None:
        # Another study on this storage was faster. A model does not say the same twice, and what is derived is of the first texts.
        parts.delete()
        check_stored(config, data.name, store, key)
        return Profiles.load(store, key)
    store.save(
        KIND,
        key,
        inputs=_inputs(config, data.key, study_seed, leaked),
        tables={"profiles": table},
        versions=installed_versions(MAKERS),
        notes=notes,
        wall_s=time.monotonic() - started,
    )
    parts.delete()
    return Profiles.load(store, key)


def check_stored(config: ProfileConfig, dataset: str, store: ArtifactStore, key: str) -> None:
    """Checks stored profiles against what this study asks of them, which may be more than the study that had them written asked.

    Raises:
        ProfileError: fewer users than `min_coverage` have a text, or more texts than `max_flagged` have a flag.
    """
    notes = store.manifest(KIND, key).notes
    again = "have them written anew (`generation`, with a temperature above 0)" if notes.get("is_llm") else "give a file with more texts"
    _check_texts(notes, lambda: Profiles.load(store, key).table, config, dataset, again)


def _check_texts(notes: Mapping[str, Any], read: Callable[[], pa.Table], config: ProfileConfig, dataset: str, or_else: str) -> None:
    """Checks that enough users have a text, and that few enough texts have a flag.

    Args:
        notes: of the profiles' artifact.
        read: returns the profiles; called where texts are missing, to say why.
        config: what is asked of them.
        dataset: its name.
        or_else: what else the user can do where texts are missing.

    Raises:
        ProfileError: too few have one; it says why, by kind of error, with examples. Or too many are flagged; it says with what.
    """
    flagged = notes["quality"].get("flagged", 0.0)
    if flagged > config.max_flagged:
        found = ", ".join(f"{name} {share:.1%}" for name, share in notes["quality"]["flags"].items() if share)
        raise ProfileError(
            f"{flagged:.1%} of the profiles of {config.label!r} have a flag ({found}), but `max_flagged` allows {config.max_flagged:.0%}; "
            "read some of them, mend prompt, model or max_tokens, or set `max_flagged` higher"
        )
    # Who was forgotten on request has no text, and that is no fault of the profiles.
    if notes["coverage"] + notes.get("forgotten_users", 0) / notes["users"] >= config.min_coverage:
        return
    table, kinds = read(), dict[str, list[str]]()
    for row in table.filter(pc.is_null(table.column("profile"))).to_pylist():
        kinds.setdefault(str(row["error"]), []).append(row["user_id"])
    reasons = "; ".join(f"{error[:200]}: {len(users):,} users ({shown(users, 4)})" for error, users in sorted(kinds.items())[:5])
    raise ProfileError(
        f"{config.label!r} has a profile for {notes['coverage']:.1%} of the {len(table):,} users of {dataset!r}, "
        f"but `min_coverage` asks for {config.min_coverage:.0%}. Without one: {reasons}. {' '.join(notes.get('warnings', []))} "
        f"Check that the ids are those of the interactions, mend the profiles, {or_else}, or set `min_coverage` lower"
    )
