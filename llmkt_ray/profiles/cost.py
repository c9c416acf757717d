"""What writing profiles takes: planned before anything starts, counted while it goes on, and stopped where a budget ends.

Hosted models cost by the token, engines on one's own machines by the hour: both prices stand under `resources`, so that a price changes
no key. Planned output is the most that `max_tokens` allows; models that stop earlier cost less.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import BudgetSpent, ProfileError
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.engines.registry import engine_of
from llmkt_ray.profiles.engines.vllm_common import ranks
from llmkt_ray.profiles.prompts import EstimatedTokens, Prompt, Tokens
from llmkt_ray.profiles.table import ProfileRow
from llmkt_ray.study import BudgetConfig, LlmPrice, ProfileConfig, ResourcesConfig

_SAMPLE = 1_000
"""Users whose prompts are built for a plan, at the most."""
_MERGE_TOKENS = 200
"""Tokens of a merging prompt beside the texts that it merges, roughly."""


@dataclass(frozen=True)
class LlmCost:
    """What one set of profiles takes.

    Attributes:
        prompts: prompts asked once each; retries are not foreseen.
        prompt_tokens: of all prompts.
        output_tokens: most that the model may write.
        counted_by: "the model's tokenizer", or why that is not so.
        gpu_hours: GPUs times hours; None without a speed, 0 where no GPU of one's own is used.
        money: in the study's currency; None without a price or without a speed that it needs.
        speed: where the tokens per second come from, in words.
    """

    prompts: int
    prompt_tokens: int
    output_tokens: int
    counted_by: str
    gpu_hours: float | None
    money: float | None
    speed: str

    def as_notes(self) -> dict[str, Any]:
        """Returns the cost as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Prices:
    """What one LLM choice costs.

    Attributes:
        price: by the token, and the stated speed.
        hour: all engine actors together for an hour, 0 for hosted models.
        gpus: of all engine actors together.
        actors: engine actors at the most.
    """

    price: LlmPrice
    hour: float
    gpus: float
    actors: int

    @staticmethod
    def of(config: ProfileConfig, resources: ResourcesConfig) -> "Prices":
        """Returns the prices of an entry under `profiles`."""
        price = resources.llm.get(config.label, LlmPrice())
        if config.llm == "openai":
            return Prices(price, 0.0, 0.0, 1)
        actors, asked = max(config.workers), resources.profiles
        workers = actors * ranks(config)
        return Prices(price, workers * (asked.cpus * resources.cpu_hour + asked.gpus * resources.gpu_hour), workers * asked.gpus, actors)

    @property
    def known(self) -> bool:
        """Whether anything has a price."""
        return bool(self.hour or self.price.prompt or self.price.output)

    def tokens(self, prompt_tokens: int, output_tokens: int) -> float:
        """Returns the price of tokens."""
        return float(prompt_tokens * self.price.prompt + output_tokens * self.price.output) / 1e6


CostOf = Callable[[LlmEngine, ProfileConfig, PreparedData, ResourcesConfig, float | None], LlmCost]


class Accounts:
    """What a study has spent on language models, over all sets of profiles and all runs.

    Args:
        resources: prices.
        budget: what may be spent.
        tokens, money: spent before.
        speeds: model to tokens per second of one engine, as measured before.
    """

    def __init__(
        self,
        resources: ResourcesConfig,
        budget: BudgetConfig,
        tokens: int = 0,
        money: float = 0.0,
        speeds: Mapping[str, float] | None = None,
    ) -> None:
        self.resources, self._budget = resources, budget
        self.tokens, self.money, self.speeds = tokens, money, speeds or {}

    def spent(self) -> str | None:
        """Returns what is used up, in words, or None while more may be asked."""
        if self._budget.llm_tokens is not None and self.tokens >= self._budget.llm_tokens:
            return f"the budget of {self._budget.llm_tokens:,} LLM tokens (spent {self.tokens:,})"
        if self._budget.money is not None and self.money >= self._budget.money:
            return f"the budget of {self._budget.money:g} (spent {self.money:.2f})"
        return None


class Account:
    """What one set of texts spends while it is made.

    Args:
        accounts: the study's.
        config: whose.
        planned: what was planned for it; None where no language model writes.
    """

    def __init__(self, accounts: Accounts, config: ProfileConfig, planned: LlmCost | None) -> None:
        self._accounts, self._config, self._planned = accounts, config, planned
        self._prices = Prices.of(config, accounts.resources)
        self._money = 0.0
        self._tokens = {"prompt_tokens": 0, "output_tokens": 0}
        self._texts = 0
        self._begun = self._last = time.monotonic()

    def charge(self, rows: Sequence[ProfileRow]) -> None:
        """Counts finished rows and the time since the last call.

        Raises:
            BudgetSpent: that was the last that the budget holds; the rows are in part files.
        """
        prompt, output = (sum(getattr(row, name) or 0 for row in rows) for name in self._tokens)
        self._tokens["prompt_tokens"] += prompt
        self._tokens["output_tokens"] += output
        now = time.monotonic()
        money = self._prices.tokens(prompt, output) + (now - self._last) / 3600 * self._prices.hour
        self._last = now
        self._money += money
        self._texts += sum(row.profile is not None for row in rows)
        self._accounts.tokens += prompt + output
        self._accounts.money += money
        spent = self._accounts.spent()
        if spent:
            raise BudgetSpent(f"{spent}, with {self._texts:,} texts of {self._config.label!r} kept for the next run")

    def notes(self, resumed: int) -> dict[str, Any]:
        """Returns what whole texts took, beside what was planned, as JSON values; nothing where no language model wrote.

        Tokens are those of all answers, of attempts that were not the last too: what was paid for.

        Args:
            resumed: rows of runs before, whose hours nobody counted here.
        """
        if self._planned is None:
            return {}
        write_s = time.monotonic() - self._begun
        return {
            **self._tokens,
            "model": self._config.model,
            "write_s": write_s,
            # Start-up of the engine is in it: what a plan multiplies is the whole job.
            "tokens_per_s": None if resumed else sum(self._tokens.values()) / write_s / self._prices.actors,
            "gpu_hours": write_s / 3600 * self._prices.gpus,
            "cost": self._money if self._prices.known else None,
            "planned": self._planned.as_notes(),
        }


def planned(
    prompts: Iterable[Prompt], config: ProfileConfig, prices: Prices, tokens_per_s: float | None, counted_by: str, scale: float = 1.0
) -> LlmCost:
    """Returns the cost of prompts, those that will merge texts about parts included.

    Args:
        prompts: as they are built.
        config: for `max_tokens`.
        prices: for money and hours.
        tokens_per_s: measured before, of one engine actor; a stated speed goes first.
        counted_by: who counted the tokens.
        scale: users in all over users of these prompts.
    """
    count = prompt_tokens = output = 0
    for prompt in prompts:
        count, prompt_tokens, output = count + 1, prompt_tokens + prompt.tokens, output + config.max_tokens
        if prompt.part[1] > 1 and prompt.part[0] == 0:
            count, output = count + 1, output + config.max_tokens
            prompt_tokens += _MERGE_TOKENS + prompt.part[1] * config.max_tokens
    count, prompt_tokens, output = (round(value * scale) for value in (count, prompt_tokens, output))
    rate = prices.price.tokens_per_s or tokens_per_s
    hours = (prompt_tokens + output) / rate / prices.actors / 3600 if rate else None
    money: float | None = prices.tokens(prompt_tokens, output) if prices.known else None
    if money is not None and prices.hour:
        money = None if hours is None else money + hours * prices.hour
    gpu_hours = 0.0 if not prices.gpus else None if hours is None else hours * prices.gpus
    speed = "not known"
    if rate:
        speed = f"{rate:,.0f} tokens/s an engine, {'stated' if prices.price.tokens_per_s else 'measured'}"
    return LlmCost(count, prompt_tokens, output, counted_by, gpu_hours, money, speed)


def plan_cost(
    config: ProfileConfig, data: PreparedData, resources: ResourcesConfig, tokens_per_s: float | None, cost: CostOf | None = None
) -> LlmCost | None:
    """Returns what one set of texts will take; None where no language model writes it. No model is asked.

    Args:
        config: who writes.
        data: the split.
        resources: prices and speeds.
        tokens_per_s: of one engine actor of this model, where it was measured before.
        cost: of the texts by an engine; None: of the users' profiles.

    Raises:
        ProfileError: the prompts cannot be built.
    """
    engine = engine_of(config, resources.profiles)
    return (cost or cost_of)(engine, config, data, resources, tokens_per_s) if isinstance(engine, LlmEngine) else None


def cost_of(
    engine: LlmEngine, config: ProfileConfig, data: PreparedData, resources: ResourcesConfig, tokens_per_s: float | None
) -> LlmCost:
    """Returns what one set of profiles by this engine will take; see `plan_cost`."""
    tokens, counted_by = counter_of(engine, config)
    builder = engine.builder(data, tokens)
    users = [str(token) for token in data.user_tokens]
    if len(users) > _SAMPLE:
        users = np.random.default_rng(0).choice(users, _SAMPLE, replace=False).tolist()
        counted_by += f", from {_SAMPLE:,} of {data.n_users:,} users"
    chosen = set(users)
    scale = data.n_users / len(users)
    return planned(builder.build(data, chosen.__contains__), config, Prices.of(config, resources), tokens_per_s, counted_by, scale)


def counter_of(engine: LlmEngine, config: ProfileConfig) -> tuple[Tokens, str]:
    """Returns the token counter of an engine, or a stand-in where its tokenizer is not at hand, and which of them it is, in words.

    Raises:
        ProfileError: the model cannot be asked at all.
    """
    if config.llm == "openai":
        return EstimatedTokens(), "4 characters a token: the tokenizer is not published as a file"
    try:
        return engine.tokens(), "the model's tokenizer"
    except ProfileError as error:
        if "tokenizer" not in str(error):
            raise
        return EstimatedTokens(), "4 characters a token: the model's tokenizer is not at hand here"
