import json
import os
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from llmkt_ray.embeddings import weights
from llmkt_ray.embeddings.encoders import encoder_identity, encoder_of
from llmkt_ray.embeddings.weights import MINILM, MINILM_SHA256, find_weights
from llmkt_ray.errors import EmbeddingError
from llmkt_ray.study import EmbeddingConfig


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub cache, and no hub: the client reads these at import, so its constants are set too."""
    import huggingface_hub.constants as constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def package_folder() -> Path:
    found = find_weights(MINILM)
    return found.folder


def test_minilm_comes_from_the_package_with_the_official_digest() -> None:
    found = find_weights(MINILM)
    assert found.source == "offline extra"
    assert found.sha256 == MINILM_SHA256
    assert find_weights("all-MiniLM-L6-v2").sha256 == MINILM_SHA256


def test_the_same_files_elsewhere_have_the_same_identity(tmp_path: Path, package_folder: Path) -> None:
    shutil.copytree(package_folder, tmp_path / "model")
    there = find_weights(str(tmp_path / "model"))
    assert there.source == "path"
    assert (there.sha256, there.config_sha256) == (MINILM_SHA256, find_weights(MINILM).config_sha256)


def test_altered_tokenizer_changes_the_identity(tmp_path: Path, package_folder: Path) -> None:
    shutil.copytree(package_folder, tmp_path / "model")
    (tmp_path / "model" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    assert find_weights(str(tmp_path / "model")).config_sha256 != find_weights(MINILM).config_sha256


def test_altered_package_is_refused(tmp_path: Path, package_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "altered_minilm"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(package_folder / "config.json", package / "model")
    data = bytearray((package_folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (package / "model" / "model.safetensors").write_bytes(bytes(data))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(weights, "MINILM_PACKAGE", "altered_minilm")
    with pytest.raises(EmbeddingError, match="they were altered: reinstall the package"):
        find_weights(MINILM)


def test_minilm_without_package_names_the_offline_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MINILM_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(EmbeddingError, match=r"HF_HUB_OFFLINE is set.*llmkt_ray\[offline\].*path of a folder.*tfidf_svd"):
        encoder_identity(EmbeddingConfig())


def test_unknown_encoder_is_an_error_not_another_encoder() -> None:
    with pytest.raises(EmbeddingError, match=r"'sentence-transformers/all-MiniLM-L6-v3' is not on this machine.*did you mean '.*L6-v2'"):
        encoder_identity(EmbeddingConfig(encoder="sentence-transformers/all-MiniLM-L6-v3"))


@pytest.mark.parametrize("name", ["./no/such/folder", "a/b/c", "bad name with spaces"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(EmbeddingError, match="encoder"):
        find_weights(name)


def test_pickled_weights_are_never_read(tmp_path: Path, package_folder: Path) -> None:
    shutil.copy(package_folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(EmbeddingError, match=r"no \.safetensors weights"):
        find_weights(str(tmp_path))


def configured(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


@pytest.fixture
def copied(tmp_path: Path, package_folder: Path) -> Path:
    shutil.copytree(package_folder, tmp_path / "model")
    return tmp_path / "model"


def test_a_model_with_code_of_its_own_is_refused_before_profiles_are_paid_for(copied: Path) -> None:
    configured(copied, model_type="own_bert", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    with pytest.raises(EmbeddingError, match=r"brings code of its own \(`auto_map`.*via: openai"):
        encoder_identity(EmbeddingConfig(encoder=str(copied)))


def test_a_model_that_sentence_transformers_cannot_load_is_told_without_a_traceback(copied: Path) -> None:
    configured(copied, model_type="own_bert")
    with pytest.raises(EmbeddingError, match=r"does not load encoder '.*model' from .*own_bert"):
        encoder_of(EmbeddingConfig(encoder=str(copied)))
    configured(copied, model_type="bert")
    (copied / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(EmbeddingError, match="does not load encoder"):
        encoder_of(EmbeddingConfig(encoder=str(copied)))


@pytest.mark.parametrize(
    ("via", "engine", "most"),
    [
        pytest.param("local", {}, 512, id="its positions"),
        pytest.param("vllm", {}, 256, id="vLLM goes by the model's own limit"),
        pytest.param("vllm", {"max_model_len": 128}, 128, id="and by its own setting"),
    ],
)
def test_more_tokens_than_an_encoder_can_read_are_refused(via: str, engine: dict[str, int], most: int) -> None:
    config = EmbeddingConfig.model_validate({"max_tokens": 1024, "via": via, "engine": engine})
    with pytest.raises(EmbeddingError, match=rf"max_tokens is 1,024, .*L6-v2' can read {most} tokens at the most; set it to {most} or"):
        encoder_identity(config)
    assert encoder_identity(config.model_copy(update={"max_tokens": most}))["max_tokens"] == most


def test_as_many_tokens_as_a_model_has_positions_are_read() -> None:
    longest = EmbeddingConfig(max_tokens=512)
    assert encoder_identity(longest)["max_tokens"] == 512
    assert encoder_of(longest).encode(["drama " * 2_000]).shape == (1, 384)


@pytest.mark.parametrize("encoder", [MINILM, "all-MiniLM-L6-v2", "~/model"])
def test_vllm_is_given_the_files_that_the_key_is_made_of(
    encoder: str, copied: Path, package_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, object]] = []
    stub = ModuleType("vllm")
    stub.__spec__ = ModuleSpec("vllm", None)
    stub.LLM = lambda **settings: given.append(settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", stub)
    monkeypatch.setattr(os, "environ", {**os.environ, "HOME": str(copied.parent)})
    encoder_of(EmbeddingConfig(encoder=encoder, via="vllm"))
    assert given[0]["model"] == str(copied if encoder == "~/model" else package_folder)
