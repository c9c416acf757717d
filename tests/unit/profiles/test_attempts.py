"""Which prompts are asked together again: a stub stands for the model."""

from collections.abc import Generator
from typing import Any

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.profiles.engines.backend import Answer, Outcome
from llmkt_ray.profiles.engines.base import Job, silent
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.prompts import EstimatedTokens, Prompt
from llmkt_ray.profiles.table import ProfileRow
from llmkt_ray.study import ProfileConfig


class Stub:
    """Says nothing at a user's first attempt; `deadly` users kill the engine with every block that they are in."""

    def __init__(self, deadly: str = "") -> None:
        self.deadly = deadly
        self.asked: list[list[str]] = []

    def identity(self) -> dict[str, Any]:
        return {"backend": "stub"}

    def run(self, blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        for number, block in enumerate(blocks):
            users = [prompt.user_id for prompt in block]
            before = {user for earlier in self.asked for user in earlier}
            self.asked.append(users)
            if self.deadly and self.deadly in users:
                yield number, "the engine died"
            else:
                yield number, [Answer("Likes films." if user in before else "", "stop") for user in users]

    def close(self) -> None:
        pass


def _rows(stub: Stub, store: ArtifactStore, users: int, **changes: Any) -> dict[str, ProfileRow]:
    config = ProfileConfig(llm="openai", model="m", **{"block_size": 4, "attempts": 2} | changes)
    prompts = [Prompt(f"u{user}", ({"role": "user", "content": f"{user}"},), 9, 3, ()) for user in range(users)]
    rows, _ = LlmEngine(config, stub, EstimatedTokens).ask(prompts, "v", Job(7, silent, Parts(store, "k")))
    return rows


def test_what_failed_is_asked_again_in_full_blocks(store: ArtifactStore) -> None:
    stub = Stub()
    rows = _rows(stub, store, 10)
    assert [len(block) for block in stub.asked] == [4, 4, 2, 4, 4, 2]
    assert {(row.profile, row.attempts) for row in rows.values()} == {("Likes films.", 2)}


def test_what_killed_its_engine_is_asked_alone(store: ArtifactStore) -> None:
    stub = Stub(deadly="u1")
    rows = _rows(stub, store, 8, attempts=3)
    # Its block, then each of it alone; what failed without a death goes on in blocks, and never beside the deadly one.
    assert stub.asked[0] == ["u0", "u1", "u2", "u3"]
    assert [block for block in stub.asked[1:] if "u1" in block] == [["u1"]] * 3
    assert ["u4", "u5", "u6", "u7"] in stub.asked[2:]
    assert rows["u1"].error == "engine_died: the engine died"
    assert all(row.profile for user, row in rows.items() if user != "u1")


def test_a_run_that_goes_on_asks_what_was_tried_equally_often_together(store: ArtifactStore) -> None:
    _rows(Stub(), store, 3, attempts=1)
    stub = Stub()
    rows = _rows(stub, store, 8, block_size=8)
    assert stub.asked[:2] == [["u0", "u1", "u2"], ["u3", "u4", "u5", "u6", "u7"]]
    assert {user: row.attempts for user, row in rows.items()} == {f"u{user}": 2 for user in range(8)}
