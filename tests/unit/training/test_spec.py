"""A trial's key changes with everything that can change its numbers."""

import pytest

from llmkt_ray.training import spec as module
from tests.unit.results.test_ledger import make_spec


def test_labels_do_not_change_the_key():
    assert make_spec(factors={"llm": "other"}).key == make_spec().key


def test_our_version_of_a_trial_changes_the_key(monkeypatch: pytest.MonkeyPatch):
    before = make_spec().key
    monkeypatch.setattr(module, "TRIAL_VERSION", module.TRIAL_VERSION + 1)
    assert make_spec().key != before


@pytest.mark.parametrize(
    ("package", "installed", "changes"), [("torch", "99.0", True), ("recbole", "99.0", True), ("numpy", "99.0", False)]
)
def test_the_libraries_that_train_change_the_key(monkeypatch: pytest.MonkeyPatch, package: str, installed: str, changes: bool):
    before, real = make_spec().key, module.version
    monkeypatch.setattr(module, "version", lambda name: installed if name == package else real(name))
    module._libraries.cache_clear()
    try:
        assert (make_spec().key != before) is changes
    finally:
        module._libraries.cache_clear()


def test_another_build_of_torch_is_the_same_version(monkeypatch: pytest.MonkeyPatch):
    """Driver and GPU workers have other builds, and must agree on keys."""
    keys = []
    for build in ("2.13.0+cpu", "2.13.0+cu130"):
        monkeypatch.setattr(module, "version", lambda name, build=build: build)
        module._libraries.cache_clear()
        keys.append(make_spec().key)
    module._libraries.cache_clear()
    assert keys[0] == keys[1]
