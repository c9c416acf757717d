"""Seeds and keys are functions of what they are given, and of nothing else."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkt_ray.seeds import canonical_json, content_key, derive_seed, training_seed

parts = st.lists(st.text(max_size=8) | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False), max_size=4)
roots = st.integers(0, 2**31 - 1)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@given(roots, parts)
def test_a_seed_is_a_31_bit_number_and_always_the_same(root: int, key: list) -> None:
    seed = derive_seed(root, *key)
    assert 0 <= seed < 2**31
    assert seed == derive_seed(root, *key)


@given(roots, parts, parts)
def test_different_keys_give_different_seeds(root: int, first: list, second: list) -> None:
    same = canonical_json(first) == canonical_json(second)
    assert (derive_seed(root, *first) == derive_seed(root, *second)) == same


def test_the_order_and_the_borders_of_the_parts_count() -> None:
    assert len({derive_seed(1, "a", "b"), derive_seed(1, "b", "a"), derive_seed(1, "ab"), derive_seed(1, "ab", "")}) == 4
    assert len({derive_seed(1, 2), derive_seed(1, "2"), derive_seed(12), derive_seed(2, 1)}) == 4


@given(roots, st.text(max_size=8), st.text(max_size=8), st.integers(0, 1000))
def test_the_training_seed_changes_with_each_of_its_four_parts(study: int, dataset: str, model: str, index: int) -> None:
    seed = training_seed(study, dataset, model, index)
    others = [
        training_seed(study + 1, dataset, model, index),
        training_seed(study, dataset + "x", model, index),
        training_seed(study, dataset, model + "x", index),
        training_seed(study, dataset, model, index + 1),
    ]
    assert seed not in others


def test_seeds_of_many_trials_spread_over_the_whole_range() -> None:
    seeds = [derive_seed(2026, "training", "ml-100k", "BPR", index) for index in range(4000)]
    assert len(set(seeds)) == 4000
    counts = [sum(seed >> 28 == block for seed in seeds) for block in range(8)]
    assert min(counts) > 400
    assert max(counts) < 600


def test_seeds_do_not_depend_on_the_process_s_hash_seed() -> None:
    code = "from llmkt_ray.seeds import *; print(derive_seed(7, 'split', 'ml-100k', 0), content_key({'b': {1.5, }.pop(), 'a': ['x']}))"
    texts = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": str(n)}, capture_output=True, text=True, check=True).stdout
        for n in (0, 1)
    }
    assert texts == {f"{derive_seed(7, 'split', 'ml-100k', 0)} {content_key({'a': ['x'], 'b': 1.5})}\n"}


def test_published_seeds_and_keys_never_change() -> None:
    """Results on disk are found by these values: a change here means that every study is computed again."""
    assert derive_seed(2026, "split", "ml-100k", 0) == 543627603
    assert training_seed(2026, "ml-100k", "NeuMF", 0) == 83936300
    assert content_key({"a": [1, 2.5, None, "ü"]}) == "30dc0108ceea61022656"


@given(documents)
def test_canonical_json_is_json_of_the_same_value(document: Any) -> None:
    assert json.loads(canonical_json(document)) == document
    assert canonical_json(document).isascii()


@given(st.dictionaries(st.text(max_size=4), st.integers(), max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(mapping: dict, random: Any) -> None:
    shuffled = list(mapping.items())
    random.shuffle(shuffled)
    assert content_key(dict(shuffled)) == content_key(mapping)


@given(documents, documents)
def test_content_keys_differ_where_the_content_does(first: Any, second: Any) -> None:
    assert (content_key(first) == content_key(second)) == (canonical_json(first) == canonical_json(second))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_nan_and_infinity_have_no_key(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_key(value)


def test_a_key_has_the_length_asked_for() -> None:
    assert len(content_key({})) == 20
    assert content_key({}, length=64).startswith(content_key({}))
