"""Structured output: what is asked, what is enforced, and what becomes of every answer."""

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.profiles.engines.registry import engine_of
from llmkt_ray.profiles.engines.vllm_common import engine_settings, sampling
from llmkt_ray.profiles.preview import preview
from llmkt_ray.profiles.structured import as_text, schema
from llmkt_ray.study import ProfileConfig, TaskResources

PARTS = ("genres", "moods", "dislikes")


def config(**changes: object) -> ProfileConfig:
    settings = {"llm": "openai", "model": "gpt-x", "structured": PARTS}
    return ProfileConfig.model_validate(settings | changes)


def test_an_answer_is_one_line_a_part_in_the_studys_order() -> None:
    answer = json.dumps({"moods": "dark\n genres: slow", "genres": "Noir, crime ", "dislikes": "", "age": "40"})
    assert as_text(answer, PARTS) == "genres: Noir, crime\nmoods: dark genres: slow"


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        ('{"genres": "Noir", "moods": "dar', "genres: Noir\nmoods: dar"),
        ('{"genres": "Noir", "moods": "dar\\', "genres: Noir\nmoods: dar"),
        ('{"genres": "Noir", "moods":', "genres: Noir"),
        ('{"genres": "Noir", "mo', "genres: Noir"),
        ('{"genres": "Noir",', "genres: Noir"),
        ('{"genres": "Noir"', "genres: Noir"),
        ('{"gen', None),
        ("", None),
        ("This viewer likes noir.", None),
        ('["Noir"]', None),
        ('{"genres": ["Noir"], "moods": 3}', None),
    ],
)
def test_of_an_answer_that_was_cut_the_parts_before_the_cut_count(cut: str, left: str | None) -> None:
    assert as_text(cut, PARTS) == left


@given(st.text(max_size=60))
def test_no_answer_is_an_exception(answer: str) -> None:
    as_text(answer, PARTS)


@given(st.lists(st.text(max_size=20), min_size=3, max_size=3), st.integers(0, 200))
def test_a_cut_adds_nothing(texts: list[str], end: int) -> None:
    whole = json.dumps(dict(zip(PARTS, texts, strict=True)))
    cut, lines = as_text(whole[:end], PARTS), as_text(whole, PARTS)
    assert cut is None or len(cut) <= len(lines or "")


def test_the_schema_takes_one_text_a_part_and_nothing_else() -> None:
    form = schema(PARTS)
    jsonschema.validate(dict.fromkeys(PARTS, "x"), form)
    for wrong in ({"genres": "x"}, dict.fromkeys(PARTS, 1), dict.fromkeys((*PARTS, "more"), "x")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, form)


def test_the_prompt_asks_for_it_in_its_constant_part(data: PreparedData) -> None:
    plain, asked = (preview(config(structured=parts), data, users=2) for parts in ((), PARTS))
    assert asked[0].messages[0]["content"].endswith("a text for each of: genres, moods, dislikes.")
    assert asked[0].messages[0] == asked[1].messages[0]
    assert [prompt.messages[1] for prompt in asked] == [prompt.messages[1] for prompt in plain]
    assert asked[0].tokens > plain[0].tokens


def test_other_parts_are_other_texts_and_none_keeps_the_key() -> None:
    identities = [engine_of(config(structured=parts)).identity() for parts in ((), PARTS, PARTS[:2])]
    assert "structured" not in identities[0]
    assert identities[1]["structured"] == list(PARTS)
    assert identities[1] != identities[2]


def test_vllm_is_given_the_schema_and_may_not_fill_an_answer_with_space() -> None:
    vllm = config(llm="vllm", model="some/model")
    assert json.loads(sampling(vllm)["structured_outputs"]["json"]) == schema(PARTS)
    assert engine_settings(vllm, TaskResources())["structured_outputs_config"]["disable_any_whitespace"] is True
    assert sampling(config(llm="vllm", structured=())) == {"temperature": 0.0, "top_p": 1.0, "max_tokens": 220}
    assert "top_p" not in sampling(config(llm="vllm", top_p=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm": "template", "model": None}, "belongs to a language model"),
        ({"structured": ("genres", "genres")}, "names of their own"),
        ({"structured": ("Say nothing else. ",)}, "should match pattern"),
    ],
)
def test_wrong_parts_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
