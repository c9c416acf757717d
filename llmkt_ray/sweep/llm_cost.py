"""What the language models of a study will take, before anything starts, and what they took."""

from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from llmkt_ray.artifacts import MANIFEST, ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.split import prepare
from llmkt_ray.errors import LlmktError
from llmkt_ray.profiles.cost import Accounts, LlmCost, plan_cost
from llmkt_ray.profiles.table import KIND
from llmkt_ray.sweep.pipeline import SplitNode
from llmkt_ray.sweep.plan import Plan


@dataclass(frozen=True)
class LlmLine:
    """One set of profiles that a language model writes.

    Attributes:
        label: whose, of what.
        planned: what it will take; None where that cannot be said.
        actual: notes of the finished profiles (tokens, `write_s`, `cost`); None where they are not finished.
        problem: why there is no plan.
    """

    label: str
    planned: LlmCost | None
    actual: dict[str, Any] | None
    problem: str | None = None


def llm_lines(plan: Plan, store: ArtifactStore) -> Iterator[LlmLine]:
    """Yields a line for every set of profiles that a language model writes; nothing is started and nothing is stored."""
    nodes = [node for node in plan.profiles if node.config.model]
    if not nodes:
        return
    speeds = measured_speeds(store)
    data: dict[str, PreparedData | LlmktError] = {}
    for node in nodes:
        if node.key in plan.there:
            notes = dict(store.manifest(KIND, node.key).notes)
            yield LlmLine(node.label, None, notes)
            continue
        if node.split.key not in data:
            data[node.split.key] = _data_of(node.split, store)
        mine = data[node.split.key]
        try:
            if isinstance(mine, LlmktError):
                raise mine
            read = mine.with_held_out_as_train() if node.leaked else mine
            yield LlmLine(node.label, plan_cost(node.config, read, plan.study.resources, speeds.get(str(node.config.model))), None)
        except LlmktError as error:
            yield LlmLine(node.label, None, None, str(error))


def measured_speeds(store: ArtifactStore) -> dict[str, float]:
    """Returns model to tokens per second of one engine, from finished profiles of any study in this storage, the newest."""
    found: dict[str, tuple[str, float]] = {}
    for name in store.files.list(KIND, recursive=True):
        key, _, file = name.removeprefix(f"{KIND}/").partition("/")
        manifest = store.find(KIND, key) if file == MANIFEST else None
        notes = manifest.notes if manifest is not None else {}
        if manifest is not None and notes.get("tokens_per_s") and notes.get("model"):
            model, value = str(notes["model"]), (manifest.created, float(notes["tokens_per_s"]))
            found[model] = max(found.get(model, value), value)
    return {model: speed for model, (_, speed) in found.items()}


def accounts_of(plan: Plan, store: ArtifactStore) -> Accounts:
    """Returns what finished profiles of the study have taken; part files are counted when they are read."""
    tokens, money = 0, 0.0
    for node in plan.profiles:
        manifest = store.find(KIND, node.key)  # made in this run too, after the plan
        if manifest is not None:
            notes = manifest.notes
            tokens += sum(int(notes.get(name) or 0) for name in ("prompt_tokens", "output_tokens"))
            money += float(notes.get("cost") or 0.0)
    return Accounts(plan.study.resources, plan.study.budget, tokens, money)


def _data_of(split: SplitNode, store: ArtifactStore) -> PreparedData | LlmktError:
    try:
        if store.find(split.kind, split.key) is not None:
            return PreparedData.load(store, split.key)
        # Prepared aside: a plan leaves nothing behind.
        with TemporaryDirectory() as folder:
            aside = ArtifactStore(folder)
            return prepare(
                split.config, study_seed=split.study_seed, repetition=split.repetition, train_share=split.train_share, store=aside
            )
    except LlmktError as error:
        return error
