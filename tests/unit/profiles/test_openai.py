"""A real HTTP server on loopback that answers as hosted endpoints do on their good and bad days."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from aiohttp import web

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import LlmktError, ProfileError, ResourceError
from llmkt_ray.profiles import endpoint
from llmkt_ray.profiles.cost import Accounts
from llmkt_ray.profiles.engines.openai import OpenAIBackend
from llmkt_ray.profiles.generate import generate, profiles_key
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.preview import preview
from llmkt_ray.profiles.table import KIND, Profiles
from llmkt_ray.seeds import derive_seed
from llmkt_ray.study import BudgetConfig, ProfileConfig, ResourcesConfig

KEY = "sk-test-1234567890"
Reply = Callable[[dict[str, Any], int], web.Response]


class Server:
    """Counts what it is asked, and answers as `reply(request, number)` says."""

    def __init__(self) -> None:
        self.reply: Reply = lambda request, number: completion(f"This viewer likes {len(request['messages'][1]['content'])} things.")
        self.requests: list[dict[str, Any]] = []
        self.authorizations: set[str] = set()
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self.answers_after_s = 0.005
        self.port = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.times.append(time.monotonic())
        self.authorizations.add(request.headers["Authorization"])
        body = await request.json()
        self.requests.append(body)
        number = len(self.requests)
        await asyncio.sleep(self.answers_after_s)
        self.in_flight -= 1
        return self.reply(body, number)


def completion(text: str | None, reason: str = "stop") -> web.Response:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 321, "completion_tokens": 12}})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server, ready, loop = Server(), threading.Event(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", server.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.port = runner.addresses[0][1]
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(20)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(endpoint, "_FIRST_WAIT_S", 0.01)
    yield server
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


def _config(server: Server, **changes: Any) -> ProfileConfig:
    settings = {"base_url": f"http://127.0.0.1:{server.port}/v1", "requests_per_minute": 600_000, "block_size": 6, "min_coverage": 0.5}
    return ProfileConfig(llm="openai", model="gpt-x", **(settings | changes))


def _run(server: Server, data: PreparedData, store: ArtifactStore, **changes: Any) -> Profiles:
    return generate(_config(server, **changes), data, store, study_seed=1)


def test_every_user_is_asked_once(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    profiles = _run(server, data, store, concurrency=4, max_tokens=77)
    assert len(server.requests) == 40
    assert profiles.coverage == 1
    assert profiles.is_llm
    assert profiles.certificate.status == "verified"
    assert server.authorizations == {f"Bearer {KEY}"}
    assert 1 < server.most_in_flight <= 4
    assert server.requests[0]["model"] == "gpt-x"
    assert server.requests[0]["max_tokens"] == 77
    row = profiles.table.to_pylist()[0]
    assert (row["prompt_tokens"], row["output_tokens"], row["finish_reason"], row["attempts"]) == (321, 12, "stop", 1)
    assert row["latency_s"] > 0
    assert "estimated" in profiles.notes["warnings"][0]


def test_the_tokens_of_all_answers_are_in_the_notes(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    profiles = _run(server, data, store)
    for name in ("prompt_tokens", "output_tokens"):
        total = sum(profiles.table.column(name).to_pylist())
        assert profiles.notes[name] == total > 0


def test_every_answer_is_paid_for_and_no_refused_request(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    good, poison = server.reply, "Film Number 10 ("
    first: list[str] = []

    def reply(request: dict[str, Any], number: int) -> web.Response:
        text = request["messages"][1]["content"]
        if poison in text:
            return web.Response(status=400, text="content filter")
        first[:] = first or [text]
        times = [earlier["messages"] for earlier in server.requests].count(request["messages"])
        return completion("") if text == first[0] and times == 1 else good(request, number)

    server.reply = reply
    config = _config(server, attempts=2)
    prices = ResourcesConfig(llm={config.label: {"prompt": 1_000_000, "output": 0}})
    accounts = Accounts(prices, BudgetConfig())
    profiles = generate(config, data, store, study_seed=1, accounts=accounts)
    refused = profiles.table.filter(pc.is_null(profiles.table.column("profile")))
    assert 0 < len(refused) < 20
    assert refused.column("prompt_tokens").null_count == len(refused)
    answers = 40 - len(refused) + 1  # one user was answered twice, the first time with nothing
    assert sorted(profiles.table.column("attempts").to_pylist()) == [1] * 39 + [2]
    assert (profiles.notes["prompt_tokens"], profiles.notes["output_tokens"]) == (321 * answers, 12 * answers)
    assert (accounts.tokens, accounts.money) == (333 * answers, 321 * answers)
    assert profiles.notes["cost"] == accounts.money


def test_key_is_nowhere_on_disk(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    _run(server, data, store)
    for name in store.files.list("", recursive=True):
        assert KEY.encode() not in (store.files.read_bytes(name) or b"")


def test_a_key_that_an_endpoint_repeats_is_in_no_error_and_no_row(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    server.reply = lambda request, number: web.Response(status=401, text=f"Received={KEY}, which is not valid")
    with pytest.raises(LlmktError, match=r"refuses the key in OPENAI_API_KEY \(http_401: Received=\[key\], which") as caught:
        _run(server, data, store)
    assert KEY not in str(caught.value)
    server.reply = lambda request, number: completion("Likes films.") if number % 2 else web.Response(status=400, text=f"no, {KEY}")
    with pytest.raises(ProfileError, match=r"http_400: no, \[key\]"):
        _run(server, data, store, min_coverage=1.0)
    rows = Parts(store, profiles_key(_config(server), data.key, 1)).finished().values()  # part files are compressed: bytes tell nothing
    assert {row.error for row in rows} == {None, "http_400: no, [key]"}


def test_a_key_of_one_letter_changes_no_text(
    server: Server, data: PreparedData, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "e")  # as people do before a server of their own
    assert set(_run(server, data, store).table.column("error").to_pylist()) == {None}
    assert any("This viewer likes" in text for text in _run(server, data, store).texts()[1])


def test_busy_endpoint_is_asked_again(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    good = server.reply
    status = {1: 429, 2: 500, 5: 503, 6: 502, 9: 529}
    server.reply = lambda request, number: web.Response(status=status[number], text="busy") if number in status else good(request, number)
    profiles = _run(server, data, store)
    assert profiles.coverage == 1
    assert len(server.requests) == 45


def test_waits_between_tries_double(server: Server, data: PreparedData, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_FIRST_WAIT_S", 0.05)
    good = server.reply
    server.reply = lambda request, number: web.Response(status=500) if number < 5 else good(request, number)
    assert _run(server, data, store, concurrency=1).coverage == 1
    waits = np.diff(server.times[:5])
    assert (waits >= [0.05, 0.1, 0.2, 0.4]).all()


def test_a_restart_does_not_ask_again_what_has_had_its_attempts(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    good, poison = server.reply, "Film Number 10 ("
    server.reply = lambda request, number: completion("") if poison in request["messages"][1]["content"] else good(request, number)
    for asked in (40 + 2 * sum(poison in prompt.messages[1]["content"] for prompt in preview(_config(server), data, 40)), 0):
        before = len(server.requests)
        with pytest.raises(ProfileError, match="`min_coverage` asks for 100%"):
            _run(server, data, store, attempts=3, min_coverage=1.0)
        assert len(server.requests) - before == asked


def test_retry_after_is_respected(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    good = server.reply
    server.reply = lambda request, number: (
        web.Response(status=429, headers={"Retry-After": "0.4"}) if number == 1 else good(request, number)
    )
    _run(server, data, store, concurrency=1)
    assert server.times[1] - server.times[0] >= 0.4


def test_rate_limit(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    _run(server, data, store, requests_per_minute=6_000)
    assert server.times[-1] - server.times[0] >= 39 * 0.01 * 0.3


def test_user_whose_request_never_works_is_a_row_and_the_rest_is_done(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    good, poison = server.reply, "Film Number 10 ("
    server.reply = lambda request, number: (
        web.Response(status=400, text="content filter") if poison in request["messages"][1]["content"] else good(request, number)
    )
    profiles = _run(server, data, store)
    rows = profiles.table.to_pylist()
    bad = [row for row in rows if row["profile"] is None]
    assert 0 < len(bad) < 20
    assert {row["error"] for row in bad} == {"http_400: content filter"}
    # No retry can help there.
    assert {row["attempts"] for row in bad} == {1}
    assert len(server.requests) == 40


def test_errors_are_tried_a_bounded_number_of_times(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    good = server.reply
    marked: list[str] = []

    def reply(request: dict[str, Any], number: int) -> web.Response:
        text = request["messages"][1]["content"]
        if not marked:
            marked.append(text)
        return completion("  \x00\ufffd ") if text == marked[0] else good(request, number)

    server.reply = reply
    profiles = _run(server, data, store, attempts=3, concurrency=1)
    [bad] = [row for row in profiles.table.to_pylist() if row["profile"] is None]
    assert bad["error"] == "empty: the model gave no text"
    assert bad["attempts"] == 3
    assert len(server.requests) == 42


def test_another_attempt_has_another_seed_and_the_first_one_always_the_same(
    server: Server, data: PreparedData, store: ArtifactStore
) -> None:
    good = server.reply
    server.reply = lambda request, number: completion("") if number <= 80 else good(request, number)
    with pytest.raises(ProfileError, match=r"0\.0% of the 40 users"):
        _run(server, data, store, attempts=2)
    assert _run(server, data, store, attempts=3).coverage == 1  # the third attempt of all, in another run
    seeds = [request["seed"] for request in server.requests]
    first, second, third = seeds[0], seeds[40], seeds[80]
    assert seeds == [first] * 40 + [second] * 40 + [third] * 40
    assert len({first, second, third}) == 3
    assert first == derive_seed(1, KIND, profiles_key(_config(server), data.key, 1))


def test_blocks_of_one_prompt_are_asked_all_at_once_too(server: Server, data: PreparedData) -> None:
    server.answers_after_s = 0.1
    backend = OpenAIBackend(config := _config(server, concurrency=8, block_size=32))
    outcomes = dict(backend.run([[prompt] for prompt in preview(config, data, 40)], 1))
    assert sorted(outcomes) == list(range(40))
    assert server.most_in_flight == 8


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (lambda: web.Response(text="<html>gateway</html>"), "malformed: the answer is not a chat completion: '<html>"),
        (lambda: web.json_response({"choices": []}), "malformed"),
        (lambda: completion(None, "content_filter"), r"refused: .*finish_reason content_filter"),
        (lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"}), "http_302"),
    ],
)
def test_answers_that_are_none(
    reply: Callable[[], web.Response], error: str, server: Server, data: PreparedData, store: ArtifactStore
) -> None:
    server.reply = lambda request, number: reply()
    with pytest.raises(ProfileError, match=f"0.0% of the 40 users.*{error}"):
        _run(server, data, store, attempts=1)


def test_unclean_text_is_cleaned(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    body = b'{"choices": [{"message": {"content": "This \xff viewer\\u0000 likes\x01 <b>rain</b>"}, "finish_reason": "stop"}]}'
    server.reply = lambda request, number: web.Response(body=body, content_type="application/json")
    texts = _run(server, data, store).texts()[1]
    assert set(texts) == {"This  viewer likes <b>rain</b>"}


@pytest.mark.parametrize(
    ("status", "message"), [(401, "refuses the key in OPENAI_API_KEY"), (403, "refuses the key"), (404, "of model 'gpt-x'")]
)
def test_wrong_key_or_model_stops_at_once(status: int, message: str, server: Server, data: PreparedData, store: ArtifactStore) -> None:
    server.reply = lambda request, number: web.Response(status=status, text="no")
    with pytest.raises(LlmktError, match=message) as caught:
        _run(server, data, store, concurrency=2)
    assert KEY not in str(caught.value)
    assert len(server.requests) <= 12


def test_no_key(server: Server, data: PreparedData, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    # A plan needs no key, a run does.
    assert profiles_key(_config(server), data.key, 1)
    with pytest.raises(LlmktError, match="environment variable OPENAI_API_KEY is not set"):
        _run(server, data, store)


def test_a_key_from_a_file_ends_with_a_line_break(
    server: Server, data: PreparedData, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\r\n")
    assert _run(server, data, store).coverage == 1
    assert server.authorizations == {f"Bearer {KEY}"}


@pytest.mark.parametrize("inside", ["\n", "\r\n", "\t", "\x07"])
def test_a_key_with_a_control_character_inside_is_refused_and_not_shown(
    inside: str, server: Server, data: PreparedData, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}{inside}export")
    with pytest.raises(ResourceError, match="key in the environment variable OPENAI_API_KEY has a line break") as caught:
        _run(server, data, store)
    assert KEY not in str(caught.value)
    assert not server.requests


def test_unreachable_endpoint(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    with pytest.raises(LlmktError, match=r"http://127\.0\.0\.1:9/v1 cannot be reached"):
        _run(server, data, store, base_url="http://127.0.0.1:9/v1")


def test_interrupted_run_goes_on_with_what_is_missing(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    good = server.reply
    server.reply = lambda request, number: web.Response(status=401) if number > 15 else good(request, number)
    with pytest.raises(LlmktError, match="refuses the key"):
        _run(server, data, store, concurrency=1)
    done = Parts(store, profiles_key(_config(server), data.key, 1)).finished()
    assert 0 < len(done) <= 15
    asked = len(server.requests)
    server.reply = good
    profiles = _run(server, data, store)
    assert len(server.requests) - asked == 40 - len(done)
    assert profiles.notes["resumed_rows"] == len(done)
    assert profiles.coverage == 1
    kept = {row["user_id"]: row["profile"] for row in profiles.table.to_pylist()}
    assert all(kept[user] == row.profile for (user, _), row in done.items())


def test_profiles_below_the_threshold_are_kept_until_the_cause_is_mended(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    good = server.reply
    server.reply = lambda request, number: good(request, number) if number % 2 else completion("")
    with pytest.raises(ProfileError, match="`min_coverage` asks for 100%"):
        _run(server, data, store, attempts=1, min_coverage=1.0)
    asked = len(server.requests)
    server.reply = good
    profiles = _run(server, data, store, attempts=2, min_coverage=1.0)
    assert profiles.coverage == 1
    assert len(server.requests) - asked == 20


def test_key_depends_on_what_determines_the_texts(server: Server, data: PreparedData) -> None:
    changes: list[dict[str, Any]] = [{}, {"generation": 1}, {"temperature": 0.7}, {"max_tokens": 99}, {"prompt_budget": 999}]
    changes += [{"demographics": True}, {"base_url": "http://elsewhere/v1"}]
    keys = {profiles_key(_config(server, **change), data.key, 1) for change in changes}
    assert len(keys) == len(changes)
    for same in ({"concurrency": 2}, {"attempts": 5}, {"timeout_s": 9}, {"block_size": 3}, {"name": "label"}):
        assert profiles_key(_config(server, **same), data.key, 1) in keys
    assert json.dumps(sorted(keys))


def test_structured_output_is_asked_for_and_an_answer_without_it_is_tried_again(
    server: Server, data: PreparedData, store: ArtifactStore
) -> None:
    answers = {1: "I like films.", 2: '{"genres": "Noir", "moods": "dark'}
    server.reply = lambda request, number: completion(answers.get(number, '{"genres": "Noir", "moods": "dark"}'))
    profiles = _run(server, data, store, structured=("genres", "moods"), concurrency=1)
    form = server.requests[0]["response_format"]
    assert (form["type"], form["json_schema"]["schema"]["required"]) == ("json_schema", ["genres", "moods"])
    assert set(profiles.table.column("profile").to_pylist()) == {"genres: Noir\nmoods: dark"}
    assert sorted(profiles.table.column("attempts").to_pylist()) == [1] * 39 + [2]


def test_an_endpoint_that_takes_one_of_temperature_and_top_p(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    good = server.reply
    server.reply = lambda request, number: (
        web.Response(status=400, text="temperature and top_p cannot both be specified") if "top_p" in request else good(request, number)
    )
    with pytest.raises(ProfileError, match="http_400: temperature and top_p cannot both be specified: 40 users"):
        _run(server, data, store, temperature=0.7)
    assert server.requests[-1]["top_p"] == 1.0
    assert _run(server, data, store, temperature=0.7, top_p=None).coverage == 1
    assert server.requests[-1]["temperature"] == 0.7
    assert profiles_key(_config(server, temperature=0.7), data.key, 1) != profiles_key(
        _config(server, temperature=0.7, top_p=None), data.key, 1
    )


def test_the_manifest_says_what_made_the_texts(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    key = _run(server, data, store, temperature=0.7, generation=3).key
    manifest = store.manifest("profiles", key)
    assert manifest.inputs["split"] == data.key
    assert manifest.inputs["seed"] == 1
    made = manifest.inputs["engine"]
    assert (made["backend"], made["model"], made["generation"]) == ("openai", "gpt-x", 3)
    assert made["sampling"] == {"max_tokens": 220, "temperature": 0.7, "top_p": 1.0}
    assert set(made["prompt"]) == {"version", "own", "built_in", "budget", "demographics", "full_history"}
    assert {"llmkt_ray", "ray", "aiohttp"} <= set(manifest.versions)
    assert manifest.notes["certificate"]["status"] == "verified"


def test_no_format_is_asked_for_without_it(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    _run(server, data, store)
    assert "response_format" not in server.requests[0]


def test_of_two_studies_that_write_the_same_profiles_the_first_one_counts(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    server.reply = lambda request, number: completion(f"Answer number {number}.")  # a model does not say the same twice
    faster: list[Profiles] = []

    def progress(done: int, total: int) -> None:
        if not faster:
            faster.append(generate(_config(server), data, ArtifactStore(store.root), study_seed=1))

    slower = generate(_config(server), data, store, study_seed=1, progress=progress)
    assert slower.table.equals(faster[0].table)
    assert len(server.requests) > 40, "both have asked"
    assert not Parts(store, slower.key).finished()


def test_stored_profiles_are_held_to_what_this_study_asks(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    good = server.reply
    server.reply = lambda request, number: good(request, number) if number % 2 else completion("")
    assert _run(server, data, store, attempts=1).coverage == 0.5
    with pytest.raises(ProfileError, match=r"`min_coverage` asks for 90%.*have them written anew"):
        _run(server, data, store, attempts=5, min_coverage=0.9)


def test_tokens_of_attempts_before_an_interruption_are_charged(server: Server, data: PreparedData, store: ArtifactStore) -> None:
    good = server.reply
    server.reply = lambda request, number: completion("") if number <= 40 else web.Response(status=401)
    with pytest.raises(LlmktError, match="refuses the key"):
        _run(server, data, store, attempts=3)
    server.reply = good
    accounts = Accounts(ResourcesConfig(), BudgetConfig())
    generate(_config(server, attempts=3), data, store, study_seed=1, accounts=accounts)
    assert accounts.tokens == 80 * (321 + 12), "of 40 empty answers and 40 texts"
