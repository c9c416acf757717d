"""A model's own tokenizer and chat template, real ones: how it is asked, and that what is counted is what is sent."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.chunks import Merger
from llmkt_ray.profiles.items import item_prompts
from llmkt_ray.profiles.prompts import Prompt, PromptBuilder, PromptTemplate
from llmkt_ray.profiles.tokenizer import ModelTokens
from llmkt_ray.study import ProfileConfig
from tests.llm.tiny_llama import CHAT_TEMPLATE, build_tiny_llama

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT_TEMPLATE
USERS_ONLY = CHAT_TEMPLATE.replace("{% for message in messages %}", "{% for message in messages if message['role'] == 'user' %}")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("llama"), [f"Film Number {item}" for item in range(60)])


def _with(template: str, llama: Path, tmp_path: Path) -> str:
    shutil.copytree(llama, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    return str(tmp_path / "model")


def test_a_system_message_is_sent_where_the_template_takes_one(llama: Path, data: PreparedData) -> None:
    tokens = ModelTokens(str(llama))
    prompt = next(PromptBuilder(PromptTemplate("movies"), tokens, 700).build(data))
    assert [message["role"] for message in prompt.messages] == ["system", "user"]
    assert prompt.messages[0]["content"] == prompt.system


@pytest.mark.parametrize("template", [NO_SYSTEM, USERS_ONLY], ids=["refuses", "leaves out"])
def test_without_a_system_role_both_texts_are_one_user_message(template: str, llama: Path, tmp_path: Path, data: PreparedData) -> None:
    model = _with(template, llama, tmp_path)
    tokens, plain = ModelTokens(model), ModelTokens(str(llama))
    asked = list(PromptBuilder(PromptTemplate("movies"), tokens, 700, chunks=True).build(data))
    merged = Merger(PromptTemplate("movies"), tokens, 700, "movies").merge(asked[:2], ["likes drama", "likes noir"])
    items, _ = item_prompts(ProfileConfig(llm="vllm", model=model, prompt_budget=700), tokens, data)
    engine = AutoTokenizer.from_pretrained(model)
    for prompt in (*asked, *merged, *items):
        [message] = prompt.messages
        assert message["role"] == "user"
        assert message["content"].startswith(f"{prompt.system}\n\n")
        # What the engine makes of the messages that it is sent.
        text = engine.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
        assert prompt.tokens == len(engine(text, add_special_tokens=False)["input_ids"]) <= 700
    both: Prompt = next(PromptBuilder(PromptTemplate("movies"), plain, 5000).build(data))
    joined = next(PromptBuilder(PromptTemplate("movies"), tokens, 5000).build(data))
    assert joined.messages[0]["content"] == "\n\n".join(message["content"] for message in both.messages)


@pytest.mark.parametrize("template", ["{{ raise_exception('Only for tools') }}", "{% for", "no message at all"])
def test_a_template_that_takes_not_even_a_user_message_is_refused(template: str, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"cannot be asked with one user message.*use an instruction-tuned model"):
        ModelTokens(_with(template, llama, tmp_path))
