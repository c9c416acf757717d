"""Any endpoint that speaks OpenAI's chat completions: hosted models, or `vllm serve` on a cluster.

The key comes from the environment of this process alone: it enters no study, no key, no log and no worker. Requests are not redirected,
so that it goes to the endpoint and nowhere else.
"""

import asyncio
import json
import os
import time
from collections.abc import Generator
from typing import Any

import aiohttp

from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.backend import Answer, Outcome
from llmkt_ray.profiles.prompts import Prompt
from llmkt_ray.study import ProfileConfig

_TRIES = 6
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_REFUSED = (401, 403, 404)


class OpenAIBackend:
    """Asks an endpoint, several requests at a time, at a limited rate, with retries and growing waits.

    Args:
        config: endpoint, model, sampling, limits and the name of the key's variable.
    """

    def __init__(self, config: ProfileConfig) -> None:
        self._config = config
        self._answered = 0
        self._next_slot = 0.0

    def identity(self) -> dict[str, Any]:
        """Returns endpoint and model: what an endpoint serves under a name is its own affair."""
        return {"backend": "openai", "base_url": self._config.base_url.rstrip("/"), "model": self._config.model}

    def run(self, blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        """Yields (index of a block, its answers) as blocks finish.

        Raises:
            ProfileError: there is no key, the endpoint refuses it or has no such model, or it cannot be reached at all.
        """
        key = os.environ.get(self._config.api_key_env)
        if not key:
            raise ProfileError(
                f"the environment variable {self._config.api_key_env} is not set, so {self._config.base_url} cannot be asked; "
                "export the key in this shell (never write it into a study), or name another variable with api_key_env"
            )
        loop = asyncio.new_event_loop()
        window = 1 + -(-self._config.concurrency // self._config.block_size)
        waiting = iter(enumerate(blocks))
        running: set[asyncio.Task[tuple[int, Outcome]]] = set()
        session = loop.run_until_complete(self._session(key))
        gate = asyncio.Semaphore(self._config.concurrency)
        try:
            while True:
                for _, (number, block) in zip(range(window - len(running)), waiting, strict=False):
                    running.add(loop.create_task(self._block(session, gate, number, block, seed)))
                if not running:
                    return
                done, running = loop.run_until_complete(asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))
                for task in done:
                    yield task.result()
        finally:
            # All of them: when one request of a block fails for good, its neighbours still run.
            loop.run_until_complete(_end(asyncio.all_tasks(loop), session))
            loop.close()

    def close(self) -> None:
        """Nothing outlives `run`."""

    async def _session(self, key: str) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=self._config.timeout_s)
        return aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}, timeout=timeout, trust_env=True)

    async def _block(
        self, session: aiohttp.ClientSession, gate: asyncio.Semaphore, number: int, block: list[Prompt], seed: int
    ) -> tuple[int, Outcome]:
        return number, list(await asyncio.gather(*(self._ask(session, gate, prompt, seed) for prompt in block)))

    async def _ask(self, session: aiohttp.ClientSession, gate: asyncio.Semaphore, prompt: Prompt, seed: int) -> Answer:
        """Returns the answer to one prompt; what may pass is tried again after a wait that doubles, or that the endpoint names."""
        problem = ""
        async with gate:
            for attempt in range(_TRIES):
                await self._slot()
                started = time.monotonic()
                wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt)
                try:
                    async with session.post(self._url, json=self._request(prompt, seed), allow_redirects=False) as response:
                        body = await response.text(errors="replace")
                        if response.status == 200:
                            self._answered += 1
                            return _answer(body, time.monotonic() - started)
                        problem = f"http_{response.status}: {' '.join(body.split())[:200]}"
                        if response.status in _REFUSED:
                            raise ProfileError(self._refusal(response.status, problem))
                        if response.status not in _BUSY:
                            return Answer(None, error=problem, retry=False)
                        wait_s = _retry_after(response.headers.get("Retry-After"), wait_s)
                except TimeoutError:
                    problem = f"timeout: no answer within {self._config.timeout_s:g} s"
                except aiohttp.ClientError as error:
                    problem = f"connection: {type(error).__name__}: {error}"
                if attempt < _TRIES - 1:
                    await asyncio.sleep(wait_s)
        if not self._answered and problem.startswith("connection"):
            raise ProfileError(
                f"{self._config.base_url} cannot be reached ({problem}, {_TRIES} tries); check base_url, the network and the server"
            )
        return Answer(None, error=problem)

    async def _slot(self) -> None:
        """Waits for this request's place in the rate limit."""
        now = time.monotonic()
        slot = max(now, self._next_slot)
        self._next_slot = slot + 60.0 / self._config.requests_per_minute
        await asyncio.sleep(slot - now)

    @property
    def _url(self) -> str:
        return f"{self._config.base_url.rstrip('/')}/chat/completions"

    def _request(self, prompt: Prompt, seed: int) -> dict[str, Any]:
        config = self._config
        return {
            "model": config.model,
            "messages": list(prompt.messages),
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": seed,
        }

    def _refusal(self, status: int, problem: str) -> str:
        if status == 404:
            return f"{self._url} has no model {self._config.model!r} or no chat completions ({problem}); check base_url and model"
        return f"{self._config.base_url} refuses the key in {self._config.api_key_env} ({problem}); export a valid one"


async def _end(tasks: set[asyncio.Task[Any]], session: aiohttp.ClientSession) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await session.close()


def _retry_after(header: str | None, otherwise: float) -> float:
    """Returns the seconds an endpoint asks to wait, at most the longest wait; `otherwise` where it names none."""
    try:
        return min(_LONGEST_WAIT_S, max(0.0, float(header))) if header else otherwise
    except ValueError:
        return otherwise


def _answer(body: str, latency_s: float) -> Answer:
    try:
        content = json.loads(body, strict=False)
        choice = content["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
        usage = content.get("usage") or {}
        return Answer(
            text if isinstance(text, str) else None,
            finish_reason=reason,
            prompt_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
            error=None if isinstance(text, str) else f"refused: the endpoint gave no text (finish_reason {reason})",
            latency_s=latency_s,
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return Answer(None, error=f"malformed: the answer is not a chat completion: {body[:120]!r}", latency_s=latency_s)
