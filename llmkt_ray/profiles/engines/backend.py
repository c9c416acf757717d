"""What every language model looks like from here: blocks of prompts go in, answers or a failure come out."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

from llmkt_ray.profiles.prompts import Prompt


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt, or why it said nothing.

    Attributes:
        text: as it came; None where there is an error.
        finish_reason: "stop", "length", or what the engine says.
        prompt_tokens, output_tokens: as the engine counts; None where it does not say.
        error: "kind: message"; None where there is a text.
        latency_s: seconds from asking to answer, of this prompt or of its block.
        retry: whether another attempt can help.
    """

    text: str | None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    latency_s: float | None = None
    retry: bool = True


Outcome = list[Answer] | str
"""The answers to a block, one each and in order; or the reason why its engine died, and then nothing of the block is known."""


class Backend(Protocol):
    """One way to run a language model."""

    def identity(self) -> dict[str, Any]:
        """Returns what determines the texts beside prompts and sampling (weights, quantisation...), JSON values only.

        Raises:
            ProfileError: it cannot work as configured.
        """

    def run(self, blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        """Yields (index of a block, its outcome) as blocks finish, in any order, each once.

        Raises:
            ProfileError: no block can ever be answered (a wrong key, no such model).
        """

    def close(self) -> None:
        """Ends every process and connection that was opened."""
