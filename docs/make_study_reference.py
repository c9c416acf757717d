"""Writes docs/study-file.md from the models of `llmkt_ray.study`: `python docs/make_study_reference.py`."""

import types
import typing
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from llmkt_ray.section import Section
from llmkt_ray.study import StudyConfig

HEAD = """# The study file

One YAML file is one study. Unknown keys are errors. `llmkt check` reports every error of the file itself at once (keys,
types, ranges, contradictions); when it has none, every other one at once (names, data, layers, storage). Where a value may be
a factor of the sweep, one value or a list of them may be given. This page is made from `llmkt_ray/study.py` by
`python docs/make_study_reference.py`.
"""


def render() -> str:
    """Returns the page: one table a section, in the order in which the study names them."""
    parts = [HEAD]
    seen: set[type[Section]] = set()
    queue: list[tuple[str, type[Section]]] = [("", StudyConfig)]
    while queue:
        path, section = queue.pop(0)
        if section in seen:
            continue
        seen.add(section)
        parts.append(f"## {path or 'The study'}\n\n{_prose(section.__doc__ or '')}\n")
        rows = ["| key | value | default | |", "|---|---|---|---|"]
        for name, field in section.model_fields.items():
            rows.append(f"| `{name}` | {_shown(field.annotation, field)} | {_default(field)} | {_prose(field.description or '')} |")
            queue.extend((f"{path}.{name}".lstrip("."), nested) for nested in _sections(field.annotation))
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _prose(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in typing.get_args(annotation) for section in _sections(argument)]


def _shown(annotation: Any, field: FieldInfo | None = None) -> str:
    """Returns a type in words, with the bounds of the field."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        bounds = [text for extra in arguments[1:] for text in _bounds(extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return " ".join([_shown(arguments[0]), *bounds])
    if origin in (typing.Union, types.UnionType):
        words = " or ".join(dict.fromkeys(_shown(a) for a in arguments if a is not type(None)))
    elif origin is Literal:
        words = ", ".join(f"`{a}`" for a in arguments)
    elif origin is tuple:
        inner = [a for a in arguments if a is not Ellipsis]
        words = f"list of {_shown(inner[0])}" if len(arguments) == 2 and arguments[1] is Ellipsis else f"{len(inner)} of {_shown(inner[0])}"
    elif origin is dict:
        words = f"mapping of {_shown(arguments[0])} to {_shown(arguments[1])}"
    elif isinstance(annotation, type) and issubclass(annotation, Section):
        words = "a section"
    else:
        words = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any value"}.get(
            annotation, str(annotation)
        )
    return " ".join([words, *(_bounds(field.metadata) if field else [])])


def _bounds(metadata: list[Any]) -> list[str]:
    texts = []
    for item in metadata:
        match item:
            case Ge(ge=bound):
                texts.append(f">= {bound:g}")
            case Gt(gt=bound):
                texts.append(f"> {bound:g}")
            case Le(le=bound):
                texts.append(f"<= {bound:g}")
            case Lt(lt=bound):
                texts.append(f"< {bound:g}")
    return texts


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, Section) or (isinstance(value, tuple) and value and isinstance(value[0], Section)):
        return "see the section"
    if value is None:
        return "none"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


if __name__ == "__main__":
    Path(__file__).with_name("study-file.md").write_text(render(), encoding="utf-8")
