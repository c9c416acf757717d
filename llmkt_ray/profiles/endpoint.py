"""One HTTP endpoint in OpenAI's manner: the key from the environment, a rate limit, retries with growing waits.

The key enters no study, no artifact, no log and no worker. Requests are not redirected, so that it goes to the endpoint and nowhere else.
"""

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from llmkt_ray.errors import ResourceError

_TRIES = 6
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_KEY_REFUSED = (401, 403)


@dataclass(frozen=True)
class Reply:
    """What an endpoint said in the end.

    Attributes:
        body: of an answer with status 200; "" otherwise.
        problem: "kind: message" of the last try; None where there is a body.
        retry: whether asking again later can help.
        latency_s: seconds that the last try took.
    """

    body: str
    problem: str | None
    retry: bool
    latency_s: float


class Endpoint:
    """Asks one endpoint, several requests at a time.

    Args:
        base_url: without the path of a function.
        api_key_env: the environment variable that holds the key.
        requests_per_minute: rate limit.
        concurrency: requests in flight at the most.
        timeout_s: seconds to wait for one answer.

    Raises:
        ResourceError: the variable is not set, or holds what cannot be sent.
    """

    def __init__(self, base_url: str, api_key_env: str, *, requests_per_minute: float, concurrency: int, timeout_s: float) -> None:
        self.base_url = base_url.rstrip("/")
        self._key_name = api_key_env
        # A key that was read from a file ends with a line break.
        self._key = os.environ.get(api_key_env, "").strip()
        if not self._key:
            raise ResourceError(
                f"the environment variable {api_key_env} is not set, so {self.base_url} cannot be asked; "
                "export the key in this shell (never write it into a study), or name another variable with api_key_env"
            )
        if not self._key.isprintable():
            raise ResourceError(
                f"the key in the environment variable {api_key_env} has a line break or another control character inside, so it cannot be "
                f"sent to {self.base_url}; export the key alone, on one line"
            )
        self._interval_s = 60.0 / requests_per_minute
        self._gate = asyncio.Semaphore(concurrency)
        self._timeout_s = timeout_s
        self._next_slot = 0.0
        self._answered = False

    async def open(self) -> aiohttp.ClientSession:
        """Returns the session that `post` needs; the caller closes it."""
        headers = {"Authorization": f"Bearer {self._key}"}
        return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=self._timeout_s), trust_env=True)

    async def post(self, session: aiohttp.ClientSession, function: str, request: dict[str, Any]) -> Reply:
        """Returns the reply to a request; what may pass is tried again after a wait that doubles, or that the endpoint names.

        Raises:
            ResourceError: the key is refused, there is no such function or model, or the endpoint has never been reached.
        """
        problem, latency_s = "", 0.0
        async with self._gate:
            for attempt in range(_TRIES):
                await self._slot()
                started = time.monotonic()
                wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt)
                try:
                    async with session.post(f"{self.base_url}/{function}", json=request, allow_redirects=False) as response:
                        body = await response.text(errors="replace")
                        latency_s = time.monotonic() - started
                        if response.status == 200:
                            self._answered = True
                            return Reply(body, None, False, latency_s)
                        # Some servers repeat in an error what they were sent.
                        problem = f"http_{response.status}: {' '.join(body.replace(self._key, '[key]').split())[:200]}"
                        if response.status in _KEY_REFUSED:
                            raise ResourceError(f"{self.base_url} refuses the key in {self._key_name} ({problem}); export a valid one")
                        if response.status == 404:
                            raise ResourceError(f"{self.base_url} has no {function} of model {request['model']!r} ({problem}); check both")
                        if response.status not in _BUSY:
                            return Reply("", problem, False, latency_s)
                        wait_s = _retry_after(response.headers.get("Retry-After"), wait_s)
                except TimeoutError:
                    problem = f"timeout: no answer within {self._timeout_s:g} s"
                except aiohttp.ClientError as error:
                    problem = f"connection: {type(error).__name__}: {error}"
                if attempt < _TRIES - 1:
                    await asyncio.sleep(wait_s)
        if not self._answered and problem.startswith("connection"):
            raise ResourceError(
                f"{self.base_url} cannot be reached ({problem}, {_TRIES} tries); check base_url, the network and the server"
            )
        return Reply("", problem, True, latency_s)

    async def _slot(self) -> None:
        """Waits for this request's place in the rate limit."""
        now = time.monotonic()
        slot = max(now, self._next_slot)
        self._next_slot = slot + self._interval_s
        await asyncio.sleep(slot - now)


async def end(tasks: set[asyncio.Task[Any]], session: aiohttp.ClientSession) -> None:
    """Cancels what still runs and closes the session."""
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
