"""What the sections of a study file have in common: frozen models that know no key but their own."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def as_tuple(value: Any) -> Any:
    """A single value where a factor may have several levels stands for a tuple of one."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value,)


def as_named(value: Any) -> Any:
    """A plain text where a section is expected stands for its `name`."""
    return {"name": value} if isinstance(value, str) else value


def told_apart(name: str, section: "Section", fields: Sequence[str]) -> str:
    """Returns a name with every one of the fields that is not at its default, so that two sections that differ have two names."""
    kinds = type(section).model_fields
    values = {field: value for field, value in section.model_dump().items() if field in fields and value != kinds[field].default}
    said = [f"{field} {str(value).lower() if isinstance(value, bool) else value}" for field, value in values.items()]
    return f"{name} ({', '.join(said)})" if said else name


class Section(BaseModel):
    """A part of a study file: frozen, unknown keys forbidden, no NaN. Errors do not repeat their input, which may be a password."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @field_validator("name", "model", "encoder", check_fields=False)
    @classmethod
    def _printable(cls, name: str | None) -> str | None:
        """Names are labels, which terminals, logs and pages show: a control character could steer these."""
        if name is not None and _CONTROL.search(name):
            raise ValueError("must have no control characters (line breaks, escapes)")
        return name
