"""Chat completions of any endpoint that speaks OpenAI's manner: hosted models, or `vllm serve` on a cluster."""

import asyncio
import json
from collections.abc import Generator
from typing import Any

import aiohttp

from llmkt_ray.profiles.endpoint import Endpoint, Reply, end
from llmkt_ray.profiles.engines.backend import Answer, Outcome
from llmkt_ray.profiles.prompts import Prompt
from llmkt_ray.profiles.structured import schema
from llmkt_ray.study import ProfileConfig


class OpenAIBackend:
    """Asks an endpoint for every prompt, from this process: it waits for a network, not for cores.

    Args:
        config: endpoint, model, sampling, limits and the name of the key's variable.
    """

    def __init__(self, config: ProfileConfig) -> None:
        self._config = config

    def identity(self) -> dict[str, Any]:
        """Returns endpoint and model: what an endpoint serves under a name is its own affair."""
        return {"backend": "openai", "base_url": self._config.base_url.rstrip("/"), "model": self._config.model}

    def run(self, blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        """Yields (index of a block, its answers) as blocks finish.

        Raises:
            ResourceError: there is no key, the endpoint refuses it or has no such model, or it cannot be reached at all.
        """
        config = self._config
        endpoint = Endpoint(
            config.base_url,
            config.api_key_env,
            requests_per_minute=config.requests_per_minute,
            concurrency=config.concurrency,
            timeout_s=config.timeout_s,
        )
        # Enough prompts at once to keep all connections busy while a block ends, however small the blocks are; no more: each is a request.
        enough = config.concurrency + config.block_size
        waiting = iter(enumerate(blocks))
        in_flight = 0
        running: set[asyncio.Task[tuple[int, Outcome]]] = set()
        loop = asyncio.new_event_loop()
        session = loop.run_until_complete(endpoint.open())
        try:
            while True:
                while in_flight < enough and (following := next(waiting, None)) is not None:
                    number, block = following
                    in_flight += len(block)
                    running.add(loop.create_task(self._block(endpoint, session, number, block, seed)))
                if not running:
                    return
                done, running = loop.run_until_complete(asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))
                for task in done:
                    number, outcome = task.result()
                    in_flight -= len(blocks[number])
                    yield number, outcome
        finally:
            # All of them: when one request of a block fails for good, its neighbours still run.
            loop.run_until_complete(end(asyncio.all_tasks(loop), session))
            loop.close()

    def close(self) -> None:
        """Nothing outlives `run`."""

    async def _block(
        self, endpoint: Endpoint, session: aiohttp.ClientSession, number: int, block: list[Prompt], seed: int
    ) -> tuple[int, Outcome]:
        requests = (endpoint.post(session, "chat/completions", self._request(prompt, seed)) for prompt in block)
        return number, [_answer(reply) for reply in await asyncio.gather(*requests)]

    def _request(self, prompt: Prompt, seed: int) -> dict[str, Any]:
        config = self._config
        form = {"name": "profile", "strict": True, "schema": schema(config.structured)}
        return {
            "model": config.model,
            "messages": list(prompt.messages),
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            **({} if config.top_p is None else {"top_p": config.top_p}),
            "seed": seed,
            **({"response_format": {"type": "json_schema", "json_schema": form}} if config.structured else {}),
        }


def _answer(reply: Reply) -> Answer:
    if reply.problem is not None:
        return Answer(None, error=reply.problem, retry=reply.retry, latency_s=reply.latency_s)
    try:
        content = json.loads(reply.body, strict=False)
        choice = content["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
        usage = content.get("usage") or {}
        return Answer(
            text if isinstance(text, str) else None,
            finish_reason=reason,
            prompt_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
            error=None if isinstance(text, str) else f"refused: the endpoint gave no text (finish_reason {reason})",
            latency_s=reply.latency_s,
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return Answer(None, error=f"malformed: the answer is not a chat completion: {reply.body[:120]!r}", latency_s=reply.latency_s)
