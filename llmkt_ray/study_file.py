"""From a study file to a study: YAML with a safe loader, every error of schema told at once in our own words."""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llmkt_ray.errors import StudyError
from llmkt_ray.schema_errors import sentences
from llmkt_ray.study import StudyConfig


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which YAML would silently let win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load_study(path: str | os.PathLike[str]) -> StudyConfig:
    """Reads and validates a study file.

    Raises:
        StudyError: the file is missing, is not YAML, or has errors of schema; all of them at once.
    """
    source = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = sorted(p.as_posix() for p in Path(path).parent.glob("*.y*ml"))[:8]
        hint = f"; study files there: {', '.join(near)}" if near else ""
        raise StudyError([f"there is no file {source!r}{hint}"], source) from error
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError([f"{source!r} cannot be read: {error}"], source) from error
    return parse_study(text, source)


def parse_study(text: str, source: str = "the study") -> StudyConfig:
    """Validates the text of a study file.

    Raises:
        StudyError: not YAML, or errors of schema; all of them at once.
    """
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise StudyError([f"malformed YAML: {' '.join(str(error).split())}"], source) from error
    if not isinstance(content, dict):
        raise StudyError([f"a study is a mapping with `name`, `datasets` and `models`, but got {type(content).__name__}"], source)
    try:
        return StudyConfig.model_validate(content)
    except ValidationError as error:
        raise StudyError(sentences(error.errors(), StudyConfig), source) from error
