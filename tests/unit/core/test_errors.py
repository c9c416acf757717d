"""Errors say what happened, the value and what to do next, and survive the way back from a worker."""

import pickle

import pytest

from llmkt_ray import errors
from llmkt_ray.errors import LlmktError, StudyError, unknown_name


def test_every_error_is_one_of_ours() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(kinds) >= 10
    assert all(issubclass(kind, LlmktError) for kind in kinds)


def test_a_study_error_lists_its_problems_and_counts_them() -> None:
    error = StudyError(["one", "two"], "s.yaml")
    assert error.problems == ("one", "two")
    assert str(error) == "s.yaml has 2 errors:\n  - one\n  - two"
    assert str(StudyError(["one"])) == "the study has 1 error:\n  - one"


@pytest.mark.parametrize("error", [StudyError(["one", "two"], "s.yaml"), errors.StorageError("disk full")])
def test_errors_survive_pickling(error: LlmktError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_the_closest_name_comes_first_whatever_the_case() -> None:
    assert unknown_name("model", "numf", ["BPR", "NeuMF", "NGCF"], "Run: llmkt models.") == (
        "model 'numf' is not known; did you mean 'NeuMF' or 'NGCF'? Known: BPR, NGCF, NeuMF. Run: llmkt models."
    )


def test_without_a_close_name_all_are_listed() -> None:
    assert unknown_name("model", "zzzz", ["BPR", "EASE"]) == "model 'zzzz' is not known; known: BPR, EASE."


def test_a_long_list_is_cut_and_says_so() -> None:
    text = unknown_name("item", "?", [f"name{i:03}" for i in range(100)])
    assert "name039, ... (100 in all)" in text
    assert "name040" not in text
