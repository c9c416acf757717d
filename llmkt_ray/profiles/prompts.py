"""Prompts: what exactly a language model is asked about one user, from the training history and within a token budget.

The constant part comes first, so that an engine with prefix caching reads it once. No ids enter a prompt; demographics only if the
study asks for them. Templates are Jinja2 in a sandbox: a user's own file can format text and nothing else.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmkt_ray.data.fields import ITEM_NOUNS, TAKEN
from llmkt_ray.data.history import Entry, about_users, histories
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.template import Population, refuse_without_facts
from llmkt_ray.profiles.structured import instruction
from llmkt_ray.seeds import canonical_json

PROMPT_VERSION = "2"
"""Part of every key of LLM profiles; rises when what prompts are made of changes, beside the templates."""
_BLOCKS = ("system", "user")
_DESCRIPTION_CHARS = 160
_FIELD_CHARS = 120


class Tokens(Protocol):
    """Counts tokens as one model does."""

    exact: bool
    """False where the count is an estimate, because the model's tokenizer is not at hand."""
    takes_system: bool
    """False where the model's chat template has no place for a system message."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of tokens of each text."""

    def count_chat(self, messages: Sequence[dict[str, str]]) -> int:
        """Returns the number of tokens of a whole conversation, its markers included."""


class EstimatedTokens:
    """Four characters a token: for hosted models whose tokenizer is not published as a file."""

    exact = False
    takes_system = True

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns a quarter of each text's length, at least 1."""
        return [max(1, -(-len(text) // 4)) for text in texts]

    def count_chat(self, messages: Sequence[dict[str, str]]) -> int:
        """Returns the estimate for the contents and 4 a message."""
        return sum(self.count([message["content"] for message in messages])) + 4 * len(messages)


@dataclass(frozen=True)
class Prompt:
    """What one user's profile is asked with.

    Attributes:
        user_id: raw id; it is not in the messages.
        messages: role and content, as the model is asked: see `conversation`.
        tokens: tokens of the whole prompt.
        history_size: train rows that the user has.
        items: indices of the items that entered the prompt.
        part: (index, number) of the parts that the history was dealt out to; (0, 1): the answer is the profile itself.
        system: the constant text in the messages.
    """

    user_id: str
    messages: tuple[dict[str, str], ...]
    tokens: int
    history_size: int
    items: tuple[int, ...]
    part: tuple[int, int] = (0, 1)
    system: str = ""

    @property
    def is_last(self) -> bool:
        """Whether the answer is the user's profile, and no part of it."""
        return self.part[1] == 1

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the messages."""
        return sha256(canonical_json(list(self.messages)).encode()).hexdigest()


class PromptTemplate:
    """A template with a block `system` (constant), a block `user` (one user's history) and maybe a block `merge` (texts about its parts).

    Args:
        domain: "movies", "music", "books" or "generic".
        path: a file of the user's own; None: the built-in one of the domain.

    Raises:
        ProfileError: the file is missing, is not a template, or lacks a block.
    """

    def __init__(self, domain: str, path: str | None = None) -> None:
        name = path or f"{domain}.j2"
        try:
            source = Path(path).expanduser().read_text(encoding="utf-8") if path else _built_in(name)
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(
                f"prompt template {name!r} cannot be read: {error}; give a UTF-8 file with blocks system and user"
            ) from error
        # Not HTML: escaping would put &amp; into titles. The sandbox is what keeps a file from running code.
        environment = ImmutableSandboxedEnvironment(autoescape=False, undefined=StrictUndefined, trim_blocks=True)
        merge = _built_in("merge.j2")
        try:
            template: Template = environment.from_string(source)
        except TemplateError as error:
            raise ProfileError(f"prompt template {name!r} is not Jinja2: {error}") from error
        missing = [block for block in _BLOCKS if block not in template.blocks]
        if missing:
            raise ProfileError(
                f"prompt template {name!r} has no block {', '.join(missing)}; it needs {{% block system %}} and {{% block user %}}"
            )
        self._templates = {"merge": environment.from_string(merge)} | dict.fromkeys(template.blocks, template)
        self.name = name
        self.merge_digest = sha256(merge.encode()).hexdigest()
        self.version = (
            f"{Path(path).stem if path else domain}-{sha256(source.encode()).hexdigest()[:8]}" if path else f"{domain}-{PROMPT_VERSION}"
        )
        self.digest = sha256(source.encode()).hexdigest()

    def render(self, block: str, values: dict[str, Any]) -> str:
        """Returns one block as text.

        Raises:
            ProfileError: the block uses a name that is not given, or something the sandbox forbids.
        """
        try:
            template = self._templates[block]
            text = "".join(template.blocks[block](template.new_context(values)))
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, OverflowError) as error:
            raise ProfileError(f"prompt template {self.name!r}, block {block}: {error}; given are {', '.join(sorted(values))}") from error
        return text.strip()


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of a split.

    Attributes:
        template: the text.
        tokens: the model's own counting.
        budget: most tokens a prompt may have.
        demographics: whether age, gender and occupation enter the prompt.
        full_history: from the full train split although the data is thinned.
        chunks: deal a history that is too long for one prompt out to several, instead of leaving its least telling rows out.
        structured: names of the parts that an answer must have.
    """

    template: PromptTemplate
    tokens: Tokens
    budget: int
    demographics: bool = False
    full_history: bool = False
    chunks: bool = False
    structured: Sequence[str] = ()

    def build(self, data: PreparedData, only: Callable[[str], bool] = lambda user: True) -> Iterator[Prompt]:
        """Yields the prompt of every user with a history, in index order; with `chunks` all parts of a user one after the other.

        Args:
            data: the split; only its train rows are read.
            only: which users to build for.

        Raises:
            ProfileError: nothing is known of the items, not even one of them fits into the budget, or the template fails.
        """
        past = histories(data, full=self.full_history)
        # A model would write something all the same, and be paid for it.
        refuse_without_facts(past.items, data.name)
        population = Population.of(past)
        about = about_users(data) if self.demographics else [None] * data.n_users
        common = self._common(data, population)
        system = self.template.render("system", common) + instruction(self.structured)
        lines: dict[tuple[int, float | None], tuple[str, int]] = {}
        for user, (user_id, history) in enumerate(past):
            if history and only(user_id):
                yield from self._prompts(user_id, history, population, about[user], system, common, lines)

    def _common(self, data: PreparedData, population: Population) -> dict[str, Any]:
        return {
            **nouns_of(data.domain),
            "rated": population.high > population.low,
            "counted": data.train.count is not None,
            "low": f"{population.low:g}",
            "high": f"{population.high:g}",
        }

    def _prompts(
        self,
        user_id: str,
        history: Sequence[Entry],
        population: Population,
        about: str | None,
        system: str,
        common: dict[str, Any],
        lines: dict[tuple[int, float | None], tuple[str, int]],
    ) -> list[Prompt]:
        ordered = most_telling(history, population)
        rated = population.high > population.low
        new = {(e.index, e.rating): line_of(e, rated) for e in ordered if (e.index, e.rating) not in lines}
        if new:
            lines.update(zip(new, zip(new.values(), self.tokens.count(list(new.values())), strict=True), strict=True))

        def often(count: float | None) -> str:
            return "" if count is None else f"; {TAKEN[common['domain']]} {count:,.10g} {'time' if count == 1 else 'times'}"

        def prompt(rows: Sequence[Entry], part: tuple[int, int] = (0, 1)) -> Prompt:
            values = common | {
                "demographics": about,
                "shown": len(rows),
                "total": len(history),
                "history": [{**_facts(entry), "line": lines[entry.index, entry.rating][0] + often(entry.count)} for entry in rows],
            }
            messages = conversation(system, self.template.render("user", values), self.tokens)
            items = tuple(entry.index for entry in rows)
            return Prompt(user_id, messages, self.tokens.count_chat(messages), len(history), items, part, system)

        empty = prompt([]).tokens
        # Two tokens a line for the dash and the line break, and those of the longest count; the exact counts below have the last word.
        longest = max((often(entry.count) for entry in ordered), key=len)
        more = 2 + (self.tokens.count([longest])[0] if longest else 0)
        sizes = np.array([lines[entry.index, entry.rating][1] + more for entry in ordered])
        return self._dealt(ordered, sizes, empty, prompt) if self.chunks else [self._cut(ordered, sizes, empty, prompt)]

    def _cut(self, ordered: list[Entry], sizes: np.ndarray, empty: int, prompt: Callable[[Sequence[Entry]], Prompt]) -> Prompt:
        """Returns the prompt with as many of the most telling rows as fit."""
        count = max(1, int(np.searchsorted(empty + np.cumsum(sizes), self.budget, side="right")))
        asked = prompt(ordered[:count])
        while asked.tokens > self.budget:
            if count == 1:
                raise self._too_long(asked)
            count -= max(1, count // 20)
            asked = prompt(ordered[:count])
        while count < len(ordered) and (longer := prompt(ordered[: count + 1])).tokens <= self.budget:
            count, asked = count + 1, longer
        return asked

    def _dealt(self, ordered: list[Entry], sizes: np.ndarray, empty: int, prompt: Callable[..., Prompt]) -> list[Prompt]:
        """Returns as few prompts as hold all rows, dealt out like cards: each part is a fair sample of the whole history."""
        parts = min(len(ordered), max(1, -(-int(sizes.sum()) // max(1, self.budget - empty))))
        while True:
            asked = [prompt(ordered[part::parts], (part, parts)) for part in range(parts)]
            longest = max(asked, key=lambda each: each.tokens)
            if longest.tokens <= self.budget:
                return asked
            if parts == len(ordered):
                raise self._too_long(longest)
            parts = min(len(ordered), parts + max(1, parts // 20))

    def _too_long(self, asked: Prompt) -> ProfileError:
        return ProfileError(
            f"a prompt with one item has {asked.tokens} tokens, but prompt_budget is {self.budget}; raise it, or shorten the template"
        )


def conversation(system: str, user: str, tokens: Tokens) -> tuple[dict[str, str], ...]:
    """Returns the messages that a model is asked: the constant text as its system message, or in front of the user's where it has none."""
    if not tokens.takes_system:
        return ({"role": "user", "content": f"{system}\n\n{user}"},)
    return ({"role": "system", "content": system}, {"role": "user", "content": user})


def nouns_of(domain: str) -> dict[str, str]:
    """Returns what templates call the items of a domain."""
    one, many = ITEM_NOUNS[domain]
    return {"domain": domain, "noun": one, "nouns": many}


def _built_in(name: str) -> str:
    return (files("llmkt_ray.profiles") / "templates" / name).read_text("utf-8")


def most_telling(history: Sequence[Entry], population: Population) -> list[Entry]:
    """Returns a history with the most telling rows first: extreme ratings, then those unlike everybody's, then what was taken most often,
    then recent ones.
    """
    middle = (population.low + population.high) / 2

    def telling(entry: Entry) -> tuple[float, float, float, float, str]:
        rating = entry.rating if entry.rating is not None else middle
        surprise = abs(rating - float(population.item_rating[entry.index])) if population.high > population.low else 0.0
        return (-abs(rating - middle), -surprise, -(entry.count or 0.0), -(entry.timestamp or 0.0), entry.item.item_id)

    return sorted(history, key=telling)


def line_of(entry: Entry, rated: bool) -> str:
    """Returns one history row as a line of the prompt: the item's telling fields, on one line each and cut to a length."""
    facts = _facts(entry)
    name = facts["title"] or facts["description"] or "untitled"
    year = f" ({facts['year']})" if facts["year"] else ""
    parts = [f"{name}{year}", *(facts[field] for field in ("creator", "genres", "category") if facts[field])]
    if facts["title"] and facts["description"]:
        parts.append(facts["description"])
    text = "; ".join(parts)
    return f"{text}; rated {entry.rating:g}" if rated and entry.rating is not None else text


def _facts(entry: Entry) -> dict[str, Any]:
    item = entry.item
    return {
        "title": one_line(item.title, _FIELD_CHARS),
        "year": one_line(item.year, 10),
        "genres": one_line(", ".join(item.genres), _FIELD_CHARS),
        "creator": one_line(item.creator, _FIELD_CHARS),
        "category": one_line(", ".join(item.category), _FIELD_CHARS),
        "description": one_line(item.description, _DESCRIPTION_CHARS),
        "rating": entry.rating,
        "count": entry.count,
    }


def one_line(text: str | None, limit: int | None = None) -> str:
    """Returns a text on one line, cut to `limit` characters; empty for None."""
    return " ".join((text or "").split())[:limit]
