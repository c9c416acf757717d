import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.history import histories
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.base import Job
from llmkt_ray.profiles.engines.template import TEMPLATE_VERSION, Population, TemplateEngine, describe
from llmkt_ray.profiles.parts import Parts
from tests.films import GENRES

JOB = Job(0, lambda done, total: None, Parts(ArtifactStore("unused"), "unused"))


def _texts(data: PreparedData, full: bool = False) -> dict[str, str]:
    table = TemplateEngine(full).write(data, JOB).table
    return dict(zip(table.column("user_id").to_pylist(), table.column("profile").to_pylist(), strict=True))


def test_names_what_the_user_loves_and_hates(data: PreparedData) -> None:
    for user, text in _texts(data).items():
        number = int(user[1:])
        likes, _, rest = text.partition("More than other users")
        assert likes.startswith(f"This user likes {GENRES[number % 6]} (100%)")
        dislikes = rest.partition("They dislike ")[2].partition(".")[0]
        assert GENRES[(number + 1) % 6] in dislikes or not dislikes


def test_is_short_enough_to_encode_quickly(data: PreparedData) -> None:
    assert max(len(text.split()) for text in _texts(data).values()) <= 95


def test_never_reads_a_held_out_row(data: PreparedData) -> None:
    """A user's text does not change with what is in test and validation, and every pair is certified."""
    altered = dataclasses.replace(data, test=data.valid, valid=data.test)
    assert _texts(altered) == _texts(data)
    certificate = TemplateEngine(False).write(data, JOB).certificate
    assert (certificate.status, certificate.leaks) == ("verified", 0)
    assert certificate.pairs == len(data.train)


def test_a_pair_that_is_held_out_too_is_found(data: PreparedData) -> None:
    leaky = dataclasses.replace(data, test=data.train.where(np.arange(len(data.train)) < 5))
    certificate = TemplateEngine(False).write(leaky, JOB).certificate
    assert (certificate.status, certificate.leaks) == ("leaked", 5)


def test_text_does_not_depend_on_the_order_of_a_history(data: PreparedData) -> None:
    past = histories(data)
    population = Population.of(past)
    history = past.of(3)
    assert describe(history, population, "movies") == describe(tuple(reversed(history)), population, "movies")


def test_demographics_only_if_asked(data: PreparedData) -> None:
    """A twin of profiles whose prompts named them: the gain of the LLM must not be that of knowing somebody's age."""
    ages = [None if user == 0 else str(20 + user) for user in range(data.n_users)]
    users = pa.table({"user_id": data.user_tokens.tolist(), "age": ages, "zip_code": ["85711"] * data.n_users})
    known = dataclasses.replace(data, users=users)
    plain, asked = TemplateEngine(False), TemplateEngine(False, demographics=True)
    texts = [engine.write(known, JOB).table.column("profile").to_pylist() for engine in (plain, asked)]
    assert texts[1][0] == texts[0][0]
    assert texts[1][3] == f"{texts[0][3]} About them: age 23."
    assert plain.identity() == {"engine": "template", "version": TEMPLATE_VERSION, "full_history": False}
    assert asked.identity() != plain.identity()


def test_thinned_or_full_history(data: PreparedData) -> None:
    thin = dataclasses.replace(data, train=data.train.where(np.arange(len(data.train)) % 3 == 0))
    assert _texts(thin) != _texts(data)
    assert _texts(thin, full=True) == _texts(data)


def test_a_user_without_train_rows_gets_an_error_row(data: PreparedData) -> None:
    without = dataclasses.replace(data, train=data.train.where(data.train.user != 4))
    row = TemplateEngine(False).write(without, JOB).table.to_pylist()[4]
    assert row["profile"] is None
    assert row["error"].startswith("no_history")


def test_implicit_feedback_has_no_dislikes(data: PreparedData) -> None:
    implicit = dataclasses.replace(data, notes={**data.notes, "has_ratings": False})
    for text in _texts(implicit).values():
        assert "dislike" not in text
        assert "Chosen: Film Number" in text


def test_counts_name_what_was_taken_most_often(data: PreparedData) -> None:
    count = (data.train.item % 7 + 1).astype(np.float32)
    notes = {**data.notes, "has_ratings": False}
    texts = _texts(dataclasses.replace(data, train=dataclasses.replace(data.train, count=count), notes=notes))
    own = data.train.item[data.train.user == 0]
    most = [int(item) for item in own if item % 7 == max(own % 7)]
    chosen = texts[str(data.user_tokens[0])].partition("Chosen most often: ")[2].partition(".")[0].split("; ")
    assert chosen[0] in {f"Film Number {item}" for item in most}


def test_items_without_any_text_are_refused(data: PreparedData) -> None:
    bare = dataclasses.replace(data, items=pa.table({"item_id": data.items.column("item_id")}))
    with pytest.raises(ProfileError, match=r"no title, genres.*bring profiles of your own"):
        _texts(bare)


def test_items_with_descriptions_only(data: PreparedData) -> None:
    items = pa.table(
        {"item_id": data.items.column("item_id"), "description": [f"Slow songs about rain number {i}" for i in range(len(data.items))]}
    )
    text = next(iter(_texts(dataclasses.replace(data, items=items, domain="music")).values()))
    assert "Slow songs about rain" in text
