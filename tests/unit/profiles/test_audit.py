from dataclasses import replace

import numpy as np
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.history import Entry, Item, histories
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.profiles.audit import decades, held_out_titles, measures_of, own_user_retrieval, polarity
from llmkt_ray.profiles.generate import generate
from llmkt_ray.profiles.kinds import KindIndex
from llmkt_ray.profiles.titles import TitleIndex
from llmkt_ray.study import ProfileConfig


def _item(title: str, year: str | None = None, *genres: str) -> Item:
    return Item("i", title, year, genres, None, (), None)


def test_titles_are_found_by_their_words_and_the_longest_counts() -> None:
    index = TitleIndex([_item("Usual Suspects, The"), _item("Star Trek"), _item("Star Trek: Generations"), _item("Heat")])
    assert index.named("Loved the usual suspects!") == {0}
    assert index.named("Saw STAR TREK - Generations twice") == {2}
    assert index.named("Star Trek and the heat") == {1}  # a title of one short word is a word
    assert index.unknown('Praises "The Usual Suspects" (1995), \u201cHeat\u201d and "The Glass Armada".') == ["The Glass Armada"]
    assert index.unknown("Calls it *slow burning* and nothing else") == []


def test_polarity_and_decades_by_hand() -> None:
    history = [Entry(0, _item("a", "1971", "Drama"), 5.0, None), Entry(1, _item("b", "1985", "Horror"), 1.0, None)]
    known = KindIndex(["Drama", "Horror"])
    assert polarity("Loves drama. Dislikes horror.", history, known) == 1
    assert polarity("Loves horror. Has little interest in drama.", history, known) == 0
    assert polarity("Loves drama and horror.", history, known) == 0.5
    assert np.isnan(polarity("Loves films.", history, known))
    assert decades("Favours the seventies and the 1980s", history) == 1
    assert decades("Favours the 70s and the nineties", history) == 0.5
    assert np.isnan(decades("Favours films", history))


def test_own_held_out_rows_fit_own_texts(data: PreparedData) -> None:
    past = histories(data)
    held = [[past.items[item] for item in data.test.item[data.test.user == user]] for user in range(data.n_users)]
    own = [" ".join(f"{item.title} {item.genres[0]}" for item in items) for items in held]
    assert np.nanmean(own_user_retrieval(own, data, past)) > 0.95
    assert np.nanmean(own_user_retrieval([*own[3:], *own[:3]], data, past)) < 0.6
    assert np.nanmean(own_user_retrieval(["the same"] * len(own), data, past)) == pytest.approx(0.5)


def test_texts_that_name_their_test_items_are_noticed(data: PreparedData) -> None:
    index = TitleIndex(histories(data).items)
    of_test = [set(data.test.item[data.test.user == user].tolist()) for user in range(data.n_users)]
    leaked = {user: index.named("; ".join(f"Film Number {item}" for item in items)) for user, items in enumerate(of_test)}
    assert leaked == dict(enumerate(of_test))
    found = held_out_titles(leaked, data)
    assert found["observed"] == len(data.test.item)
    assert found["ratio"] is None or found["ratio"] > 5
    clean = held_out_titles({user: set(range(data.n_items)) for user in range(data.n_users)}, data)
    assert clean["ratio"] == pytest.approx(1)  # whoever names everything names these no more than others


def test_every_figure_is_stored_by_type_of_user(data: PreparedData, store: ArtifactStore) -> None:
    profiles = generate(ProfileConfig(llm="template"), data, store, study_seed=1)
    measures = profiles.notes["quality"]["measures"]
    asked = {"boilerplate", "polarity", "decades", "foreign titles", "unknown titles", "own-user retrieval", "near duplicates", "flagged"}
    assert asked | {"genre precision", "genre recall", "distinct-1", "distinct-2", "length", "flag refused"} <= set(measures)
    for measure in measures.values():
        assert set(measure["by"]) == {"activity", "popularity affinity", "genre entropy", "recency"}
        assert all(set(thirds) == {"low", "middle", "high"} for thirds in measure["by"].values())
    precision = measures["genre precision"]
    assert precision["all"] == 1
    values, _ = measures_of(profiles.table.column("profile").to_pylist(), data)
    length = next(measure for measure in values if measure.name == "length").values
    assert measures["length"]["all"] == pytest.approx(length.mean())
    assert set(profiles.notes["quality"]["held_out_titles"]) == {"observed", "expected", "ratio"}


def test_figures_do_without_what_a_dataset_lacks(data: PreparedData, store: ArtifactStore) -> None:
    bare = replace(data, items=data.items.select(["item_id"]), notes={**data.notes, "has_ratings": False, "has_timestamps": False})
    values, held_out = measures_of(["A viewer of films."] * data.n_users, bare)
    by_name = {measure.name: measure.values for measure in values}
    assert np.isnan(by_name["polarity"]).all()
    assert np.isnan(by_name["own-user retrieval"]).all()
    assert held_out == {"observed": 0, "expected": 0, "ratio": None}
