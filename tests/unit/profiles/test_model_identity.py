"""What identifies the model in a folder: all that a text can depend on, wherever the folder lies and whatever it is called."""

import shutil
from pathlib import Path

import pytest

from llmkt_ray import digests
from llmkt_ray.profiles.engines.vllm_common import model_identity
from llmkt_ray.study import ProfileConfig

WEIGHTS = b"header and the first tensors".ljust(3 << 20, b"\0")


@pytest.fixture(params=["model.safetensors", "pytorch_model.bin", "model.pt", "model.gguf"])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / request.param).write_bytes(WEIGHTS)
    return folder / request.param


def _identity(folder: Path) -> object:
    return model_identity(ProfileConfig(llm="vllm", model=str(folder)))


def test_weights_that_differ_after_their_first_megabyte_are_another_model(weights: Path) -> None:
    before = _identity(weights.parent)
    weights.write_bytes(WEIGHTS[:-1] + b"\1")  # as a merged adapter: the same names, sizes, header and first tensors
    assert _identity(weights.parent) != before


def test_a_copy_of_another_name_is_the_same_model(weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights.parent, tmp_path / "renamed")
    assert _identity(tmp_path / "renamed") == _identity(weights.parent)


def test_the_state_of_a_trainer_is_no_part_of_the_model(weights: Path) -> None:
    before = _identity(weights.parent)
    (weights.parent / "optimizer.pt").write_bytes(b"momenta")
    (weights.parent / "README.md").write_text("A model.")
    assert _identity(weights.parent) == before


def test_a_large_file_that_did_not_change_is_not_read_again(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_WORTH_KEEPING_BYTES", 1 << 20)
    read: list[str] = []
    monkeypatch.setattr(digests, "file_digest", lambda stream, name: (read.append(stream.name), real(stream, name))[1])
    before = _identity(weights.parent)
    digests._digest.cache_clear()  # as in the next command
    assert _identity(weights.parent) == before
    assert read.count(str(weights)) == 1
    [kept] = (tmp_path / "cache" / "llmkt_ray" / "digests").iterdir()
    kept.write_text("half")
    digests._digest.cache_clear()
    assert _identity(weights.parent) == before, "what cannot be a digest is not believed"
    assert read.count(str(weights)) == 2


def test_a_home_that_cannot_be_written_to_only_costs_time(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _identity(weights.parent)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(digests, "_WORTH_KEEPING_BYTES", 1)
    digests._digest.cache_clear()
    assert _identity(weights.parent) == before


real = digests.file_digest
