"""Item knowledge texts, as KAR reads them (arXiv 2306.10933, section 4.1): what the same engines write about each item.

They are made from the items table alone, never from interactions: nothing held out can enter them.
"""

import time
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llmkt_ray.artifacts import ArtifactStore, installed_versions
from llmkt_ray.data.fields import ITEM_NOUNS
from llmkt_ray.data.history import Entry, Item, item_facts, kinds_of
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.raw import shown
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.cost import Account, Accounts, LlmCost, Prices, counter_of, plan_cost, planned
from llmkt_ray.profiles.engines.base import Job, Progress, silent
from llmkt_ray.profiles.engines.file import read_texts
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.engines.registry import engine_of
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.prompts import Prompt, PromptTemplate, Tokens, conversation, line_of, one_line
from llmkt_ray.profiles.structured import instruction
from llmkt_ray.profiles.table import MAKERS, ProfileRow, as_table
from llmkt_ray.seeds import content_key, derive_seed
from llmkt_ray.study import BudgetConfig, ProfileConfig, ResourcesConfig, TaskResources

KIND = "item_texts"
ITEMS_VERSION = "items-1"
"""Version of our item sentences and of what an item's prompt is made of."""
_TEMPLATE = "item"


@dataclass(frozen=True)
class ItemTexts:
    """Stored item knowledge (artifact kind "item_texts").

    Attributes:
        key: the artifact's key.
        table: one row an item of the split: item_id, text (null with an `error`), llm, prompt_version, prompt_hash, prompt_tokens,
            output_tokens, finish_reason, attempts, error, latency_s. The text is untrusted.
    """

    key: str
    table: pa.Table

    def texts(self) -> tuple[list[str], list[str]]:
        """Returns (item ids, texts) of the items that have one, in index order."""
        rows = self.table.filter(pc.is_valid(self.table.column("text")))
        return rows.column("item_id").to_pylist(), rows.column("text").to_pylist()

    @staticmethod
    def load(store: ArtifactStore, key: str) -> "ItemTexts":
        """Returns stored texts.

        Raises:
            ArtifactError: the artifact is missing or damaged.
        """
        return ItemTexts(key, store.table(KIND, key, "items"))


def item_texts_key(config: ProfileConfig, data_key: str, study_seed: int) -> str:
    """Returns the key of the item texts: of the split's items, of what writes, and of the seed where it draws.

    Raises:
        ProfileError: the engine cannot work as configured, or there is no such file.
    """
    return content_key(_inputs(config, data_key, study_seed))


def _inputs(config: ProfileConfig, data_key: str, study_seed: int) -> dict[str, Any]:
    if config.llm == "file":
        return {"split": data_key, "file": _digest(config), "seed": None}
    engine = engine_of(config)
    asked = PromptTemplate(_TEMPLATE, config.prompt).digest if isinstance(engine, LlmEngine) else None
    inputs = {"split": data_key, "engine": engine.identity(), "seed": study_seed if engine.draws else None}
    return {**inputs, "items": ITEMS_VERSION, "template": asked}


def write_item_texts(
    config: ProfileConfig,
    data: PreparedData,
    store: ArtifactStore,
    *,
    study_seed: int,
    progress: Progress = silent,
    resources: TaskResources = TaskResources(),  # noqa: B008 - frozen
    accounts: Accounts | None = None,
) -> ItemTexts:
    """Returns the texts of a split's items, from the store where they are there already.

    Args:
        config: who writes; a `file` is Parquet with columns item_id and text.
        data: the split; only its items table is read.
        store: where the artifact goes, and part files while it is made.
        study_seed: of what an engine draws.
        progress: called with (items done, items in all).
        resources: what one engine actor asks of Ray.
        accounts: what the study has spent on language models; None: nothing is counted.

    Raises:
        BudgetSpent: the budget ends before they are whole; what was paid for is in part files.
        ProfileError: nothing is known of the items, the file cannot be read, no text can be written, or fewer items than
            `min_coverage` have one.
        StorageError: they cannot be stored.
    """
    key = item_texts_key(config, data.key, study_seed)
    if store.find(KIND, key) is not None:
        return ItemTexts.load(store, key)
    started = time.monotonic()
    parts = Parts(store, key)
    took: dict[str, Any] = {}
    if config.llm == "file":
        rows = _of_file(config, data)
    else:
        engine = engine_of(config, resources)
        seed = derive_seed(study_seed, KIND, key)
        if isinstance(engine, LlmEngine):
            accounts = accounts or Accounts(ResourcesConfig(), BudgetConfig())
            account = Account(accounts, config, _cost_of(engine, config, data, accounts.resources, accounts.speeds.get(str(config.model))))
            rows, counts = _asked(engine, config, data, Job(seed, progress, parts, account.charge))
            took = counts | account.notes(counts["resumed_rows"])
        else:
            rows = _described(data)
    table = as_table(rows).drop_columns(["history_size"]).rename_columns({"user_id": "item_id", "profile": "text"})
    coverage = 1 - table.column("text").null_count / max(len(table), 1)
    if coverage < config.min_coverage:
        errors = pc.unique(pc.drop_null(table.column("error"))).to_pylist()
        raise ProfileError(
            f"{config.label!r} has a text for {coverage:.1%} of the {data.n_items:,} items of {data.name!r}, but `min_coverage` asks for "
            f"{config.min_coverage:.0%}; reasons: {shown(errors, 3)}; mend the texts, or set kar.items.min_coverage lower"
        )
    if store.find(KIND, key) is not None:  # another study on this storage was faster, and what is derived is of its texts
        parts.delete()
        return ItemTexts.load(store, key)
    store.save(
        KIND,
        key,
        inputs=_inputs(config, data.key, study_seed),
        tables={"items": table},
        versions=installed_versions(MAKERS),
        notes={
            "items": len(table),
            "with_text": len(table) - table.column("text").null_count,
            "coverage": coverage,
            "llm": config.label,
            **took,
        },
        wall_s=time.monotonic() - started,
    )
    parts.delete()
    return ItemTexts.load(store, key)


def item_sentence(item: Item, noun: str) -> str:
    """Returns what is known of an item as a sentence or two, without a language model; empty where nothing is."""
    kinds = kinds_of(item)
    if not (item.title or kinds or item.description):
        return ""
    name = f'"{one_line(item.title)}"' if item.title else f"This {noun}"
    facts = [f"is a {noun}"]
    if item.year:
        facts.append(f"of {one_line(item.year)}")
    if item.creator:
        facts.append(f"by {one_line(item.creator)}")
    sentence = f"{name} {' '.join(facts)}."
    if kinds:
        sentence += f" Its kinds are {', '.join(map(one_line, kinds))}."
    return f"{sentence} {one_line(item.description)}" if item.description else sentence


def plan_item_texts(config: ProfileConfig, data: PreparedData, resources: ResourcesConfig, tokens_per_s: float | None) -> LlmCost | None:
    """Returns what the texts of a split's items will take; see `plan_cost`."""
    return plan_cost(config, data, resources, tokens_per_s, _cost_of)


def _cost_of(
    engine: LlmEngine, config: ProfileConfig, data: PreparedData, resources: ResourcesConfig, tokens_per_s: float | None
) -> LlmCost:
    tokens, counted_by = counter_of(engine, config)
    return planned(item_prompts(config, tokens, data)[0], config, Prices.of(config, resources), tokens_per_s, counted_by)


def item_prompts(config: ProfileConfig, tokens: Tokens, data: PreparedData) -> tuple[list[Prompt], str]:
    """Returns the prompt of every item of which something is known, and the template's version.

    Args:
        config: for its prompt and budget.
        tokens: the model's own counting.
        data: the split; only its items table is read.

    Raises:
        ProfileError: the template fails, or one item alone does not fit into the budget.
    """
    template = PromptTemplate(_TEMPLATE, config.prompt)
    one, many = ITEM_NOUNS[data.domain]
    common = {"domain": data.domain, "noun": one, "nouns": many}
    system = template.render("system", common) + instruction(config.structured)
    prompts = []
    for index, item in enumerate(item_facts(data.items)):
        if not item_sentence(item, one):
            continue
        asked = template.render("user", common | {"line": line_of(Entry(index, item, None, None), rated=False)})
        messages = conversation(system, asked, tokens)
        count = tokens.count_chat(messages)
        if count > config.prompt_budget:
            raise ProfileError(f"the prompt of one item has {count} tokens, but prompt_budget is {config.prompt_budget}; raise it")
        prompts.append(Prompt(item.item_id, messages, count, 0, (index,), system=system))
    return prompts, template.version


def _asked(engine: LlmEngine, config: ProfileConfig, data: PreparedData, job: Job) -> tuple[list[ProfileRow], dict[str, int]]:
    prompts, version = item_prompts(config, engine.tokens(), data)
    rows, counts = engine.ask(prompts, version, job)
    empty = "no_facts: the items table says nothing of this item"
    return [
        rows.get(str(token)) or ProfileRow(str(token), None, str(config.model), version, 0, error=empty) for token in data.item_tokens
    ], counts


def _described(data: PreparedData) -> list[ProfileRow]:
    noun = ITEM_NOUNS[data.domain][0]
    rows = []
    for item in item_facts(data.items):
        text = item_sentence(item, noun)
        if text:
            rows.append(ProfileRow(item.item_id, text, "template", ITEMS_VERSION, 0, sha256(text.encode()).hexdigest(), attempts=1))
        else:
            rows.append(ProfileRow(item.item_id, None, "template", ITEMS_VERSION, 0, error="no_facts: the items table says nothing of it"))
    return rows


def _of_file(config: ProfileConfig, data: PreparedData) -> list[ProfileRow]:
    texts = read_texts(Path(config.path or "").expanduser(), "item_id", "text")
    return [
        ProfileRow(
            str(token),
            text,
            config.label,
            "file",
            0,
            sha256(text.encode()).hexdigest() if text else None,
            error=None if text else "missing: the file has no text for this item",
        )
        for token in data.item_tokens
        for text in [(texts.get(str(token)) or "").strip() or None]
    ]


def _digest(config: ProfileConfig) -> str:
    try:
        with open(Path(config.path or "").expanduser(), "rb") as stream:
            return file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ProfileError(
            f"item texts {config.path!r} cannot be read: {error.strerror}; give a Parquet file of item_id and text"
        ) from error
