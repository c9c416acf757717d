import pytest

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError, StudyError
from llmkt_ray.profiles.engines.registry import ENGINES, engine_of
from llmkt_ray.profiles.preview import preview
from llmkt_ray.study import ProfileConfig
from llmkt_ray.study_file import parse_study


def test_preview_needs_no_key_and_no_network(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    prompts = preview(ProfileConfig(llm="openai", model="gpt-4o"), data, users=2)
    assert [prompt.user_id for prompt in prompts] == ["u00", "u01"]
    assert "Film Number" in prompts[0].messages[1]["content"]
    assert prompts[0].tokens > 100


def test_no_prompts_without_a_language_model(data: PreparedData) -> None:
    with pytest.raises(ProfileError, match="'template' have no prompts: no language model is asked"):
        preview(ProfileConfig(llm="template"), data)


def test_every_llm_of_a_study_has_an_engine() -> None:
    assert set(ENGINES) == set(ProfileConfig.model_fields["llm"].annotation.__args__)
    with pytest.raises(ProfileError, match="llm 'vlm' is not known; did you mean 'vllm'"):
        engine_of(ProfileConfig.model_construct(llm="vlm"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{llm: openai}", "profiles with llm 'openai' need a `model`"),
        ("{llm: template, model: gpt}", "`model` belongs to a language model"),
        ("{llm: vllm, model: m, workers: [3, 1]}", "workers is a number or"),
        ("{llm: gpt}", "template"),
    ],
)
def test_wrong_entries(entry: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study(f"name: s\ndatasets: [{{name: ml-100k}}]\nmodels: [BPR]\nprofiles: [{entry}]")


def test_two_models_of_one_engine_are_two_choices() -> None:
    study = parse_study("name: s\ndatasets: [{name: ml-100k}]\nmodels: [BPR]\nprofiles: [{llm: openai, model: a}, {llm: openai, model: b}]")
    assert [entry.label for entry in study.profiles] == ["openai:a", "openai:b"]
