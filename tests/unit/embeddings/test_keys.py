"""Keys change with what changes the numbers: our versions, the libraries', every module's weights."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from llmkt_ray.embeddings import encode, targets
from llmkt_ray.embeddings.encoders import encoder_identity, encoder_width
from llmkt_ray.embeddings.weights import output_width
from llmkt_ray.errors import EmbeddingError
from llmkt_ray.study import EmbeddingConfig, ReductionConfig

READ_BY = {"umap": "umap-learn", "pca": "scikit-learn", "pca_whiten": "scikit-learn", "random_projection": "scikit-learn", "none": None}


@pytest.mark.parametrize(("method", "package"), READ_BY.items())
def test_targets_depend_on_the_version_of_their_reducer_alone(monkeypatch: pytest.MonkeyPatch, method: str, package: str | None) -> None:
    config, real = ReductionConfig(method=method), targets.version
    before = targets.targets_key("e", config, 8, 1)
    for upgraded in ("umap-learn", "scikit-learn"):
        monkeypatch.setattr(targets, "version", lambda name, upgraded=upgraded: "99" if name == upgraded else real(name))
        assert (targets.targets_key("e", config, 8, 1) != before) is (upgraded == package)


def test_our_own_versions_are_in_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = targets.targets_key("e", ReductionConfig(), 8, 1), encode.embeddings_key("p", {})
    monkeypatch.setattr(targets, "TARGETS_VERSION", 99)
    monkeypatch.setattr(encode, "EMBEDDINGS_VERSION", 99)
    after = targets.targets_key("e", ReductionConfig(), 8, 1), encode.embeddings_key("p", {})
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_prefix_that_tfidf_would_ignore_is_refused() -> None:
    with pytest.raises(EmbeddingError, match=r"embedding\.prefix 'query: ' means nothing to tfidf_svd"):
        encoder_identity(EmbeddingConfig(encoder="tfidf_svd", prefix="query: "))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The files of a model whose last module narrows the vectors; the weights are bytes that nobody loads."""
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "2_Dense").mkdir()
    write(tmp_path / "modules.json", [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_Normalize"}])
    write(tmp_path / "config.json", {"hidden_size": 96})
    write(tmp_path / "1_Pooling" / "config.json", {"word_embedding_dimension": 96, "pooling_mode_mean_tokens": True})
    write(tmp_path / "2_Dense" / "config.json", {"in_features": 96, "out_features": 48})
    (tmp_path / "model.safetensors").write_bytes(b"transformer")
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(b"dense")
    return tmp_path


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def test_weights_of_every_module_are_in_the_identity(model: Path) -> None:
    config = EmbeddingConfig(encoder=str(model))
    before = encoder_identity(config)
    (model / "2_Dense" / "model.safetensors").write_bytes(b"other dense")
    assert encoder_identity(config)["weights_sha256"] != before["weights_sha256"]


def test_the_width_is_that_of_the_last_module_that_sets_one(model: Path) -> None:
    assert encoder_width(EmbeddingConfig(encoder=str(model))) == 48


@pytest.mark.parametrize(
    ("pooling", "width"),
    [
        ({"word_embedding_dimension": 96, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 96),
        ({"word_embedding_dimension": 96, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, 192),
        ({"embedding_dimension": 96, "pooling_mode": "mean"}, 96),
        ({"embedding_dimension": 96, "pooling_mode": ["mean", "max"]}, 192),
    ],
)
def test_a_pooling_of_several_modes_joins_them(model: Path, pooling: dict[str, object], width: int) -> None:
    write(model / "1_Pooling" / "config.json", pooling)
    write(model / "modules.json", [{"path": ""}, {"path": "1_Pooling"}])
    assert output_width(model) == width


def test_a_model_that_does_not_tell_its_width_is_refused(model: Path) -> None:
    (model / "modules.json").unlink()
    write(model / "config.json", {})
    with pytest.raises(EmbeddingError, match="does not tell how wide"):
        output_width(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": {"dtype": "float32"}}, "settings of vLLM, but via is 'local'"),
        ({"encoder": "tfidf_svd", "via": "vllm"}, "has no weights"),
        ({"encoder": "tfidf_svd", "max_tokens": 128}, r"embedding\.max_tokens 128 would change nothing for 'tfidf_svd'"),
        ({"encoder": "tfidf_svd", "revision": "v2"}, r"embedding\.revision 'v2' would change nothing for 'tfidf_svd'"),
        ({"encoder": "ada", "via": "openai", "max_tokens": 128}, r"embedding\.max_tokens 128 would change nothing for an endpoint"),
        ({"encoder": "ada", "via": "openai", "revision": "v2", "max_tokens": 9}, r"max_tokens 9 and revision 'v2' would change nothing"),
    ],
)
def test_settings_of_another_way_to_run_an_encoder_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EmbeddingConfig(**settings)  # type: ignore[arg-type]
