"""Pydantic's errors as sentences: the place, what is allowed there, and the value that was given."""

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from llmkt_ray.errors import unknown_name

_PLAIN_WORDS = (
    ("Input should be", "must be"),
    ("a valid tuple", "a list"),
    ("a valid dictionary", "a mapping"),
    ("Tuple should", "list should"),
    ("tuple should", "list should"),
    (" after validation", ""),
)
_BRANCHES = frozenset({"int", "float", "str", "bool", "list", "dict", "constrained-int", "literal"})


def sentences(details: Sequence[ErrorDetails], root: type[BaseModel]) -> list[str]:
    """Returns one sentence a mistake: what only follows from another is left out, alternatives of a union are joined.

    Args:
        details: what `ValidationError.errors()` says.
        root: the model that was validated; unknown keys are compared with the fields of its sections.
    """
    problems: dict[tuple[str, str, str], list[str]] = {}
    for detail in details:
        # A list whose only item is wrong also counts as empty: the item's own error says what to mend.
        if detail["type"] == "too_short" and any(_is_inside(other["loc"], detail["loc"]) for other in details):
            continue
        if detail["type"] == "extra_forbidden":
            location, key = _without_branches(detail["loc"][:-1]), str(detail["loc"][-1])
            problems[_place(location), key, ""] = [unknown_name("key", key, _section_at(location, root).model_fields)]
            continue
        place = _place(_without_branches(detail["loc"]))
        problems.setdefault((place, "", _given(detail)), []).append(_wanted(detail))
    return [f"{place}: {_joined(messages)}{given}" for (place, _, given), messages in problems.items()]


def _place(location: Sequence[int | str]) -> str:
    return ".".join(map(str, location)) or "study"


def _wanted(detail: ErrorDetails) -> str:
    """Returns what is allowed, in the words of a study file: lists and mappings, not tuples and dictionaries."""
    if detail["type"] in ("model_type", "dict_type"):
        return "must be a mapping"
    message = detail["msg"].removeprefix("Value error, ")
    for theirs, ours in _PLAIN_WORDS:
        message = message.replace(theirs, ours)
    return message[0].lower() + message[1:]


def _given(detail: ErrorDetails) -> str:
    """Returns ", but got <value>" unless the message has said it or the value is too large to show."""
    value = detail["input"]
    told = "but got" in detail["msg"] or repr(value) in detail["msg"] or not isinstance(value, str | int | float | bool)
    return "" if told else f", but got {value!r}"


def _joined(messages: list[str]) -> str:
    """Joins what the branches of a union ask for: "must be 'auto' or 'all', or a list"."""
    first, *others = dict.fromkeys(messages)
    return first + "".join(f", or {other.removeprefix('must be ')}" for other in others)


def _is_inside(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _without_branches(location: Sequence[int | str]) -> list[int | str]:
    """Returns a pydantic location without the names of union branches, which are no keys of the file."""
    return [part for part in location if not (isinstance(part, str) and ("[" in part or part in _BRANCHES))]


def _section_at(path: Sequence[int | str], root: type[BaseModel]) -> type[BaseModel]:
    """Returns the section that a path of keys leads to (`root` itself for an empty path)."""
    section = root
    for key in path:
        field = section.model_fields.get(key) if isinstance(key, str) else None
        section = (_section_in(field.annotation) or section) if field else section
    return section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Returns the section inside an annotation such as `tuple[Annotated[ModelConfig, ...], ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _section_in(argument))), None)
