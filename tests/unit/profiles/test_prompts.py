import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llmkt_ray.data.history import Entry, Item, histories
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.template import Population
from llmkt_ray.profiles.prompts import EstimatedTokens, Prompt, PromptBuilder, PromptTemplate, line_of, most_telling


class Words:
    """One token a word, exactly."""

    exact = True
    takes_system = True

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def count_chat(self, messages: Sequence[dict[str, str]]) -> int:
        return sum(self.count([message["content"] for message in messages]))


def _prompts(data: PreparedData, budget: int = 2000, **options: bool) -> list[Prompt]:
    return list(PromptBuilder(PromptTemplate(data.domain), Words(), budget, **options).build(data))


def test_every_user_is_asked_from_train_rows_alone(data: PreparedData) -> None:
    prompts = _prompts(data)
    assert [prompt.user_id for prompt in prompts] == data.user_tokens.tolist()
    for user, prompt in enumerate(prompts):
        assert sorted(prompt.items) == sorted(data.train.item[data.train.user == user].tolist())
        held = set(data.test.item[data.test.user == user].tolist()) | set(data.valid.item[data.valid.user == user].tolist())
        text = prompt.messages[1]["content"]
        assert not any(f"Film Number {item} (" in text for item in held)
        assert all(f"Film Number {item} ({1950 + item}); " in text for item in prompt.items)
    swapped = dataclasses.replace(data, test=data.valid, valid=data.test)
    assert [prompt.hash for prompt in _prompts(swapped)] == [prompt.hash for prompt in prompts]


def test_constant_part_comes_first_and_no_id_is_told(data: PreparedData) -> None:
    prompts = _prompts(data)
    assert len({prompt.messages[0]["content"] for prompt in prompts}) == 1
    assert [message["role"] for message in prompts[0].messages] == ["system", "user"]
    for prompt in prompts:
        text = prompt.messages[1]["content"]
        assert prompt.user_id not in text
        assert not any(str(token) in text.split() for token in data.item_tokens)


@pytest.mark.parametrize("budget", [110, 150, 200])
def test_budget_is_kept_and_used(budget: int, data: PreparedData) -> None:
    for prompt in _prompts(data, budget):
        assert prompt.tokens == Words().count_chat(prompt.messages) <= budget
        # One more line (8 words here) would not have fitted.
        assert len(prompt.items) == prompt.history_size or prompt.tokens + 8 > budget


def test_cut_histories_keep_the_most_telling_rows(data: PreparedData) -> None:
    whole, cut = _prompts(data)[0], _prompts(data, 130)[0]
    assert cut.items == whole.items[: len(cut.items)]
    past = histories(data)
    ratings = [entry.rating for entry in most_telling(past.of(0), Population.of(past))]
    assert ratings == sorted(ratings, key=lambda rating: -abs((rating or 0) - 3))


def test_a_budget_for_not_even_one_item(data: PreparedData) -> None:
    with pytest.raises(ProfileError, match=r"a prompt with one item has \d+ tokens, but prompt_budget is 64"):
        _prompts(data, 64)


def test_demographics_only_if_asked(data: PreparedData) -> None:
    users = pa.table({"user_id": data.user_tokens.tolist(), "age": ["24"] * data.n_users, "zip_code": ["85711"] * data.n_users})
    known = dataclasses.replace(data, users=users)
    assert "24" not in _prompts(known)[0].messages[1]["content"].partition("Rated films")[0]
    asked = _prompts(known, demographics=True)[0].messages[1]["content"]
    assert asked.startswith("About the viewer: age 24.")
    assert "85711" not in asked


@pytest.mark.parametrize(("domain", "word"), [("movies", "viewer"), ("music", "listener"), ("books", "reader"), ("generic", "user")])
def test_each_domain_has_a_prompt_of_its_own(domain: str, word: str, data: PreparedData) -> None:
    prompt = _prompts(dataclasses.replace(data, domain=domain))[0]
    assert f'beginning with "This {word}"' in prompt.messages[0]["content"]
    assert "Ratings run from 1 (hated) to 5 (loved)" in prompt.messages[0]["content"]
    assert PromptTemplate(domain).version == f"{domain}-2"


def test_implicit_feedback_has_no_ratings(data: PreparedData) -> None:
    prompt = _prompts(dataclasses.replace(data, notes={**data.notes, "has_ratings": False}))[0]
    assert "rated" not in prompt.messages[1]["content"]
    assert "Ratings run" not in prompt.messages[0]["content"]


def test_counts_of_implicit_feedback_are_told_and_come_first(data: PreparedData) -> None:
    count = np.arange(len(data.train), dtype=np.float32) * 700 + 1
    notes = {**data.notes, "has_ratings": False}
    counted = dataclasses.replace(data, train=dataclasses.replace(data.train, count=count), notes=notes, domain="music")
    prompt = _prompts(counted)[0]
    shown = [line.rpartition("; played ")[2] for line in prompt.messages[1]["content"].splitlines() if line.startswith("- ")]
    own = np.sort(count[data.train.user == 0])[::-1].astype(int).tolist()
    assert shown == [f"{n:,} {'time' if n == 1 else 'times'}" for n in own]
    assert "The list says how often each was played." in prompt.messages[0]["content"]
    assert "played" not in _prompts(dataclasses.replace(data, domain="music"))[0].messages[1]["content"]
    for cut in _prompts(counted, 130):
        assert cut.tokens == Words().count_chat(cut.messages) <= 130


def test_all_fields_of_an_item_on_one_line() -> None:
    item = Item("i1", "Blue\nTrain", "1957", ("Jazz", "Hard bop"), "John Coltrane", ("CDs",), "A {{ record }} " + "x" * 500)
    line = line_of(Entry(0, item, 4.0, None), rated=True)
    assert line.startswith("Blue Train (1957); John Coltrane; Jazz, Hard bop; CDs; A {{ record }} xxx")
    assert line.endswith("; rated 4")
    assert "\n" not in line
    assert len(line) < 260


def test_text_of_the_data_is_never_a_template(data: PreparedData) -> None:
    titles = pa.array(["{{ 7 * 191 }}{% include 'x' %}"] * data.n_items)
    items = pa.table({"item_id": data.items.column("item_id"), "title": titles})
    text = _prompts(dataclasses.replace(data, items=items))[0].messages[1]["content"]
    assert "{{ 7 * 191 }}" in text
    assert "1337" not in text


def _own(folder: Path, text: str) -> PromptTemplate:
    (folder / "mine.j2").write_text(text)
    return PromptTemplate("movies", str(folder / "mine.j2"))


def test_own_template(tmp_path: Path, data: PreparedData) -> None:
    template = _own(
        tmp_path,
        "{% block system %}Taste in {{ nouns }}.{% endblock %}"
        "{% block user %}{% for e in history %}{{ e.title }}={{ e.rating }} {% endfor %}{% endblock %}",
    )
    prompt = next(iter(PromptBuilder(template, Words(), 500).build(data)))
    assert prompt.messages[0]["content"] == "Taste in films."
    assert prompt.messages[1]["content"].startswith("Film Number ")
    assert template.version.startswith("mine-")
    other = _own(tmp_path, "{% block system %}{% endblock %}{% block user %}x{% endblock %}")
    assert other.version != template.version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% block user %}x{% endblock %}", "has no block system"),
        ("{% block system %}{% endblock %}{% block user %}{% for %}{% endblock %}", "is not Jinja2"),
        (
            "{% block system %}{% endblock %}{% block user %}{{ histori }}{% endblock %}",
            "'histori' is undefined; given are counted, demographics",
        ),
        ("{% block system %}{{ ''.__class__.__mro__ }}{% endblock %}{% block user %}x{% endblock %}", "unsafe"),
        ("{% block system %}{% include '/etc/hostname' %}{% endblock %}{% block user %}x{% endblock %}", "no loader"),
        ("{% block system %}{{ range(99999999) | list }}{% endblock %}{% block user %}x{% endblock %}", "[Rr]ange too big"),
    ],
)
def test_templates_that_cannot_be(text: str, message: str, tmp_path: Path, data: PreparedData) -> None:
    with pytest.raises(ProfileError, match=message):
        list(PromptBuilder(_own(tmp_path, text), Words(), 500).build(data))


def test_absent_template(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        PromptTemplate("movies", str(tmp_path / "none.j2"))


def test_estimate_is_four_characters_a_token() -> None:
    tokens = EstimatedTokens()
    assert tokens.count(["", "abcd", "abcde"]) == [1, 1, 2]
    assert not tokens.exact


def test_items_of_which_nothing_is_known_make_no_prompt(data: PreparedData) -> None:
    bare = dataclasses.replace(data, items=pa.table({"item_id": data.items.column("item_id")}))
    with pytest.raises(ProfileError, match=r"the items of 'films' have no title, genres.*so no text can be made of a history"):
        _prompts(bare)
