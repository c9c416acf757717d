"""What the language models of a study will take, before anything starts, and what they took."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from llmkt_ray.artifacts import ArtifactStore, Manifest
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.split import prepare
from llmkt_ray.errors import ArtifactError, LlmktError
from llmkt_ray.profiles.cost import Accounts, LlmCost, plan_cost
from llmkt_ray.profiles.items import KIND as ITEM_TEXTS
from llmkt_ray.profiles.items import plan_item_texts
from llmkt_ray.profiles.table import KIND as PROFILES
from llmkt_ray.sweep.pipeline import ItemTextsNode, ProfileNode, SplitNode
from llmkt_ray.sweep.plan import Plan


@dataclass(frozen=True)
class LlmLine:
    """One set of texts that a language model writes: profiles, or the item texts of KAR.

    Attributes:
        label: whose, of what.
        planned: what it will take, or what was planned where it is finished; None where that cannot be said.
        actual: notes of the finished texts (tokens, `write_s`, `gpu_hours`, `cost`, and what was `planned`); None where they are not
            finished.
        problem: why there is no plan.
    """

    label: str
    planned: LlmCost | None
    actual: dict[str, Any] | None
    problem: str | None = None


def llm_lines(plan: Plan, store: ArtifactStore) -> Iterator[LlmLine]:
    """Yields a line for every set of texts that a language model writes; nothing is started and nothing is stored."""
    nodes = _nodes(plan)
    if not nodes:
        return
    speeds = measured_speeds(store)
    data: dict[str, PreparedData | LlmktError] = {}
    for node in nodes:
        if node.key in plan.there:
            notes = dict(store.manifest(node.kind, node.key).notes)
            # Texts of an earlier version have no plan beside them.
            yield LlmLine(node.label, LlmCost(**notes["planned"]) if notes.get("planned") else None, notes)
            continue
        if node.split.key not in data:
            data[node.split.key] = _data_of(node.split, store)
        mine = data[node.split.key]
        try:
            if isinstance(mine, LlmktError):
                raise mine
            speed, resources = speeds.get(str(node.config.model)), plan.study.resources
            if isinstance(node, ItemTextsNode):
                cost = plan_item_texts(node.config, mine, resources, speed)
            else:
                cost = plan_cost(node.config, mine.with_held_out_as_train() if node.leaked else mine, resources, speed)
            yield LlmLine(node.label, cost, None)
        except LlmktError as error:
            yield LlmLine(node.label, None, None, str(error))


def measured_speeds(store: ArtifactStore) -> dict[str, float]:
    """Returns model to tokens per second of one engine, from finished texts of any study in this storage, the newest."""
    found: dict[str, tuple[str, float]] = {}
    for kind in (PROFILES, ITEM_TEXTS):
        for manifest in store.manifests(kind):
            if manifest.notes.get("tokens_per_s") and manifest.notes.get("model"):
                model, value = str(manifest.notes["model"]), (manifest.created, float(manifest.notes["tokens_per_s"]))
                found[model] = max(found.get(model, value), value)
    return {model: speed for model, (_, speed) in found.items()}


def accounts_of(plan: Plan, store: ArtifactStore) -> Accounts:
    """Returns what finished texts of the study have taken, for a run that makes others; part files are counted when they are read."""
    taken = _notes(plan, store)
    tokens = sum(int(notes.get(name) or 0) for notes in taken for name in ("prompt_tokens", "output_tokens"))
    return Accounts(plan.study.resources, plan.study.budget, tokens, _money(taken), measured_speeds(store))


def money_spent(plan: Plan, store: ArtifactStore) -> float:
    """Returns what finished texts of the study have cost, in its currency."""
    return _money(_notes(plan, store))


def _nodes(plan: Plan) -> list[ProfileNode | ItemTextsNode]:
    return [node for node in plan.artifacts if isinstance(node, ProfileNode | ItemTextsNode) and node.config.model]


def _notes(plan: Plan, store: ArtifactStore) -> list[Mapping[str, Any]]:
    # Looked up in the store: some were made in this run, after the plan.
    found = (_manifest(store, node.kind, node.key) for node in _nodes(plan))
    return [manifest.notes for manifest in found if manifest is not None]


def _money(taken: Iterable[Mapping[str, Any]]) -> float:
    return sum(float(notes.get("cost") or 0.0) for notes in taken)


def _manifest(store: ArtifactStore, kind: str, key: str) -> Manifest | None:
    """Returns a manifest without reading what it is of: what was paid was paid, even if a text is damaged since."""
    try:
        return store.manifest(kind, key)
    except ArtifactError:
        return None


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
