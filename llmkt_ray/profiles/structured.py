"""Structured output: a profile in named parts, as a JSON object whose form the engine's grammar enforces.

What is stored is text, one line a part, so that encoders, prompts and pages need not know about it.
"""

import json
from collections.abc import Sequence
from typing import Any

_ENDINGS = ("", '"}', "}")
"""What an object lacks that was cut at the token limit: inside a text, or after one."""


def instruction(parts: Sequence[str]) -> str:
    """Returns what the system message says besides, on a line of its own; empty without parts."""
    return f"\nAnswer with a JSON object that has a text for each of: {', '.join(parts)}." if parts else ""


def schema(parts: Sequence[str]) -> dict[str, Any]:
    """Returns the JSON schema of an answer: one text for each part, nothing else."""
    texts = {part: {"type": "string"} for part in parts}
    return {"type": "object", "properties": texts, "required": list(parts), "additionalProperties": False}


def as_text(answer: str, parts: Sequence[str]) -> str | None:
    """Returns an answer as lines "part: text"; None where it is no such object, or all its texts are empty.

    Of an answer that was cut at the token limit the parts before the cut count, and what there is of the one that was cut.

    Args:
        answer: what the model said; untrusted.
        parts: their names, in order.
    """
    content = _object(answer.strip())
    texts = ((part, content.get(part)) for part in parts)
    # On one line each, so that a text cannot pass for several parts.
    lines = [f"{part}: {' '.join(text.split())}" for part, text in texts if isinstance(text, str) and text.strip()]
    return "\n".join(lines) or None


def _object(text: str) -> dict[str, Any]:
    whole = text.rstrip("\\")
    for start in (whole, whole[: whole.rfind('",') + 1]):
        for ending in _ENDINGS:
            try:
                content = json.loads(start + ending, strict=False)
            except (ValueError, RecursionError):
                continue
            if isinstance(content, dict):
                return content
    return {}
