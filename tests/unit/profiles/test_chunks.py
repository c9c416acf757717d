"""Histories too long for one prompt, read in parts: a stub stands for the model, everything else is real."""

import gc
import re
import weakref
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.profiles import generate as generate_module
from llmkt_ray.profiles.chunks import Merger
from llmkt_ray.profiles.engines import llm
from llmkt_ray.profiles.engines.backend import Answer, Outcome
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.generate import generate, profiles_key
from llmkt_ray.profiles.preview import preview
from llmkt_ray.profiles.prompts import EstimatedTokens, Prompt, PromptBuilder, PromptTemplate
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.study import ProfileConfig, TaskResources

TITLE = re.compile(r"Film Number \d+\b")
CHUNKS = ProfileConfig(llm="openai", model="stub", long_history="chunks", prompt_budget=330, min_coverage=0.01, attempts=1)


class Stub:
    """Answers with the titles that it was shown, a {{ template }} among them; fails where `fails` says so; dies after `lives` prompts."""

    def __init__(self, lives: int = 10**6) -> None:
        self.asked: list[Prompt] = []
        self.lives = lives
        self.fails = lambda prompt: False

    def identity(self) -> dict[str, Any]:
        return {"backend": "stub"}

    def run(self, blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        for number, block in enumerate(blocks):
            if len(self.asked) + len(block) > self.lives:
                raise KeyboardInterrupt
            self.asked += block
            yield number, [self._answer(prompt) for prompt in block]

    def _answer(self, prompt: Prompt) -> Answer:
        if self.fails(prompt):
            return Answer(None, error="refused: no")
        titles = ", ".join(TITLE.findall(prompt.messages[1]["content"]))
        return Answer(f"This viewer {{{{ 7 * 191 }}}}\nsaw {titles}", "stop", prompt_tokens=100, output_tokens=10, latency_s=0.5)

    def close(self) -> None:
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()

    def engine(config: ProfileConfig, resources: TaskResources | None = None) -> LlmEngine:
        return LlmEngine(config, stub, EstimatedTokens)

    monkeypatch.setattr(generate_module, "engine_of", engine)
    return stub


def _write(data: PreparedData, store: ArtifactStore, config: ProfileConfig = CHUNKS) -> Profiles:
    return generate(config, data, store, study_seed=1)


def test_every_train_row_reaches_a_prompt_and_every_user_one_row(data: PreparedData, store: ArtifactStore, stub: Stub) -> None:
    profiles = _write(data, store)
    parts = [prompt for prompt in stub.asked if "notes describes" not in prompt.messages[1]["content"]]
    shown = Counter((prompt.user_id, title) for prompt in parts for title in TITLE.findall(prompt.messages[1]["content"]))
    train = zip(data.train.user, data.train.item, strict=True)
    assert shown == Counter((str(data.user_tokens[user]), f"Film Number {item}") for user, item in train)
    assert all(prompt.tokens <= 330 for prompt in stub.asked)
    assert profiles.table.column("user_id").to_pylist() == data.user_tokens.tolist()
    assert profiles.coverage == 1
    # ... and the text of every part reached the profile, through the merge.
    for user, text in enumerate(profiles.table.column("profile").to_pylist()):
        assert {f"Film Number {item}" for item in data.train.item[data.train.user == user]} <= set(TITLE.findall(text))


def test_a_row_sums_up_all_that_its_profile_needed(data: PreparedData, store: ArtifactStore, stub: Stub) -> None:
    profiles = _write(data, store)
    needed = Counter(prompt.user_id for prompt in stub.asked)
    assert {1} < set(needed.values())  # some histories fit whole
    for row in profiles.table.to_pylist():
        asked = needed[row["user_id"]]
        assert (row["prompt_tokens"], row["output_tokens"], row["latency_s"]) == (100 * asked, 10 * asked, 0.5 * asked)
        assert row["finish_reason"] == "stop"
        hashes = [prompt.hash for prompt in stub.asked if prompt.user_id == row["user_id"]]
        assert (row["prompt_hash"] in hashes) == (asked == 1)
    assert len(set(profiles.table.column("prompt_hash").to_pylist())) == data.n_users
    assert profiles.notes["prompt_tokens"] == 100 * len(stub.asked)
    assert profiles.notes["histories_in_parts"] == sum(asked > 1 for asked in needed.values())
    assert profiles.notes["shortened_histories"] == 0
    assert profiles.certificate.status == "verified"


def test_text_about_a_part_is_never_a_template_nor_several_notes(data: PreparedData, store: ArtifactStore, stub: Stub) -> None:
    _write(data, store)
    merges = [prompt for prompt in stub.asked if "notes describes" in prompt.messages[1]["content"]]
    assert merges
    for prompt in merges:
        text = prompt.messages[1]["content"]
        assert "1337" not in text
        assert prompt.messages[0] == stub.asked[0].messages[0]  # the constant part stays the same, for prefix caching
        told = int(re.findall(r"these (\d+) notes", text)[0])
        assert text.count("\n- This viewer {{ 7 * 191 }} saw") == told


def test_more_texts_than_one_prompt_holds_are_merged_in_groups() -> None:
    tokens = EstimatedTokens()
    template = PromptTemplate("movies")
    asked = [Prompt("u", (), 1, 9, (part,), (part, 9), "s") for part in range(9)]
    groups = Merger(template, tokens, 400, "movies").merge(asked, ["x" * 400] * 9)
    assert [prompt.part for prompt in groups] == [(0, 3), (1, 3), (2, 3)]
    assert [prompt.items for prompt in groups] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    assert not Merger(template, tokens, 150, "movies").merge(asked, ["x" * 400] * 9)


def test_a_part_without_text_is_an_error_row_of_that_user_alone(data: PreparedData, store: ArtifactStore, stub: Stub) -> None:
    lost = next(
        p.user_id for p in PromptBuilder(PromptTemplate("movies"), EstimatedTokens(), 330, chunks=True).build(data) if not p.is_last
    )
    stub.fails = lambda prompt: prompt.user_id == lost and prompt.part[0] == 1
    rows = {row["user_id"]: row for row in _write(data, store).table.to_pylist()}
    assert re.match(r"part: 1 of \d parts of the history have no text: refused: no", rows[lost]["error"])
    assert rows[lost]["profile"] is None
    assert [user for user, row in rows.items() if row["profile"] is None] == [lost]


def test_a_restart_asks_only_for_what_is_missing(data: PreparedData, store: ArtifactStore, stub: Stub) -> None:
    config = CHUNKS.model_copy(update={"block_size": 4})
    stub.lives = 50  # dies after some parts, before any merge
    with pytest.raises(KeyboardInterrupt):
        _write(data, store, config)
    first, stub.asked, stub.lives = stub.asked, [], 10**6
    resumed = _write(data, store, config)
    assert not {p.hash for p in first} & {p.hash for p in stub.asked}
    assert resumed.coverage == 1
    assert resumed.notes["resumed_rows"] == len(first)


@pytest.mark.parametrize("long_history", ["select", "chunks"])
def test_only_the_prompts_of_one_window_of_users_are_in_memory(
    long_history: str, tmp_path: Path, data: PreparedData, store: ArtifactStore, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CHUNKS.model_copy(update={"long_history": long_history})
    progress: list[int] = []
    whole = generate(config, data, store, study_seed=1, progress=lambda done, total: progress.append(done))
    once, stub.asked = [prompt.hash for prompt in stub.asked], []
    monkeypatch.setattr(llm, "_WINDOW", 7)
    built: list[weakref.ref[Prompt]] = []
    users: list[set[str]] = []
    run, again, hashes = stub.run, list[int](), list[str]()

    def watched(blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        built.extend(weakref.ref(prompt) for block in blocks for prompt in block)
        yield from run(blocks, seed)
        hashes.extend(prompt.hash for prompt in stub.asked)
        stub.asked = []
        gc.collect()
        users.append({prompt.user_id for ref in built if (prompt := ref()) is not None})

    monkeypatch.setattr(stub, "run", watched)
    parts = generate(config, data, ArtifactStore(tmp_path / "other"), study_seed=1, progress=lambda done, total: again.append(done))
    assert len(users) >= 6  # 40 users by 7
    assert max(map(len, users)) == 7
    assert sorted(hashes) == sorted(once)
    assert parts.table.equals(whole.table)
    assert parts.certificate == whole.certificate
    told = ("asked", "shortened_histories", "histories_in_parts", "prompt_tokens", "output_tokens", "warnings")
    assert [parts.notes[name] for name in told] == [whole.notes[name] for name in told]
    assert again == sorted(again)
    assert again[-1] == progress[-1] == data.n_users


def test_key_and_preview(data: PreparedData, tmp_path: Path) -> None:
    select = CHUNKS.model_copy(update={"long_history": "select"})
    assert profiles_key(CHUNKS, data.key, 1) != profiles_key(select, data.key, 1)
    prompts = preview(CHUNKS.model_copy(update={"prompt_budget": 250}), data, users=2)
    assert len({prompt.user_id for prompt in prompts}) == 2 < len(prompts)
    assert len(preview(select, data, users=2)) == 2


def test_own_merge_block(tmp_path: Path) -> None:
    own = tmp_path / "mine.j2"
    own.write_text(
        "{% block system %}s{% endblock %}{% block user %}u{% endblock %}"
        "{% block merge %}Join {{ parts | join(' + ') }} of {{ nouns }}.{% endblock %}"
    )
    asked = [Prompt("u", (), 1, 9, (part,), (part, 2), "s") for part in range(2)]
    merged = Merger(PromptTemplate("movies", str(own)), EstimatedTokens(), 400, "movies").merge(asked, ["a", "b"])
    assert merged[0].messages[1]["content"] == "Join a + b of films."
    assert merged[0].is_last
