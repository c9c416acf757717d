import shutil
from pathlib import Path

import pytest

from llmkt_ray.embeddings import weights
from llmkt_ray.embeddings.encoders import encoder_identity
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
