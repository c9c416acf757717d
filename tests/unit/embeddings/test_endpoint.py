"""Embeddings from a real HTTP server on loopback that speaks OpenAI's /embeddings."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.encode import encode
from llmkt_ray.embeddings.encoders import encoder_identity
from llmkt_ray.errors import EmbeddingError, LlmktError, ResourceError
from llmkt_ray.profiles import endpoint
from llmkt_ray.profiles.generate import generate
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.study import EmbeddingConfig, ProfileConfig

Answer = Callable[[dict[str, Any], int], web.Response]


def _vectors(request: dict[str, Any], number: int) -> web.Response:
    rows = [{"index": i, "embedding": [len(text), text.count("a"), number]} for i, text in enumerate(request["input"])]
    # Endpoints may answer in any order.
    return web.json_response({"data": rows[::-1]})


class Server:
    def __init__(self) -> None:
        self.answer: Answer = _vectors
        self.requests: list[dict[str, Any]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(await request.json())
        return self.answer(self.requests[-1], len(self.requests))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server, ready, loop = Server(), threading.Event(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/embeddings", server.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(20)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr(endpoint, "_FIRST_WAIT_S", 0.01)
    yield server
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


@pytest.fixture
def profiles(data: PreparedData, store: ArtifactStore) -> Profiles:
    return generate(ProfileConfig(llm="template"), data, store, study_seed=1)


def _config(server: Server, **changes: Any) -> EmbeddingConfig:
    settings = {"via": "openai", "base_url": server.url, "batch_size": 16, "requests_per_minute": 60_000}
    return EmbeddingConfig(encoder="text-embedding-ada-002", **(settings | changes))


def test_vectors_come_back_to_their_texts(server: Server, profiles: Profiles, store: ArtifactStore) -> None:
    embeddings = encode(_config(server, prefix="passage: "), profiles, store, workers=2)
    assert [len(request["input"]) for request in server.requests] == [16, 16, 8]
    assert {request["model"] for request in server.requests} == {"text-embedding-ada-002"}
    for vector, text in zip(embeddings.vectors, profiles.texts()[1], strict=True):
        assert vector[:2].tolist() == [len("passage: " + text), ("passage: " + text).count("a")]
    encode(_config(server, prefix="passage: "), profiles, store)
    assert len(server.requests) == 3


def test_busy_endpoint_is_asked_again(server: Server, profiles: Profiles, store: ArtifactStore) -> None:
    server.answer = lambda request, number: web.Response(status=429) if number == 2 else _vectors(request, number)
    assert np.isfinite(encode(_config(server), profiles, store).vectors).all()
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (lambda request, number: web.json_response({"data": []}), EmbeddingError, "something else than one vector each"),
        (lambda request, number: web.Response(text="oops"), EmbeddingError, "something else than one vector each"),
        (lambda request, number: web.Response(status=400, text="too long"), EmbeddingError, "http_400: too long"),
        (lambda request, number: web.Response(status=401), ResourceError, "refuses the key in OPENAI_API_KEY"),
        (lambda request, number: web.Response(status=404), ResourceError, "no embeddings of model 'text-embedding-ada-002'"),
    ],
)
def test_bad_answers(
    answer: Answer, kind: type[LlmktError], message: str, server: Server, profiles: Profiles, store: ArtifactStore
) -> None:
    server.answer = answer
    with pytest.raises(kind, match=message):
        encode(_config(server), profiles, store)
    assert not store.files.list("embeddings", recursive=True)


def test_identity_needs_no_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    identity = encoder_identity(_config(server))
    assert identity["encoder"] == "text-embedding-ada-002"
    assert identity == encoder_identity(_config(server, requests_per_minute=5))
