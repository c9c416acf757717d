"""What becomes of a row of `ray.data.llm`."""

import pytest

from llmkt_ray.profiles.engines.vllm_data import answer_of


@pytest.mark.parametrize(("prompt", "generated", "reason"), [(300, 24, "length"), (300, 23, "stop"), (390, 10, "length"), (390, 9, "stop")])
def test_a_text_ends_at_the_limit_of_answers_or_of_the_engine(prompt: int, generated: int, reason: str) -> None:
    row = {"generated_text": "x", "num_input_tokens": prompt, "num_generated_tokens": generated, "time_taken_llm": 0.5}
    assert answer_of(row, max_tokens=24, longest=400).finish_reason == reason


def test_an_error_is_an_answer_without_a_text() -> None:
    answer = answer_of({"__inference_error__": "too long"}, max_tokens=24, longest=400)
    assert (answer.text, answer.error) == (None, "inference: too long")
