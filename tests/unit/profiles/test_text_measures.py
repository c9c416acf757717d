import numpy as np
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.history import histories
from llmkt_ray.profiles.text_measures import distinctiveness, text_measures
from tests.films import GENRES, film_split


def test_measures_of_each_profile(tmp_path):
    data = film_split(tmp_path / "films", ArtifactStore(tmp_path / "store"), n_users=6)
    texts = [f"Loves {GENRES[user]}, and nothing else at all." for user in range(4)] + ["Hello <b>you</b>", None]
    found = {m.name: m.values for m in text_measures(texts, histories(data), GENRES)}
    assert found["length"][[0, 4]].tolist() == [7.0, 4.0]
    assert np.isnan([values[5] for values in found.values()]).all()
    assert found["genre precision"][0] == 1.0
    assert found["genre recall"][0] == pytest.approx(1 / 5)
    assert found["genre recall"][4] == 0.0
    assert found["distinctiveness"][4] > max(found["distinctiveness"][:4])


def test_texts_without_a_word_are_no_measure():
    assert np.isnan(distinctiveness(["...", "!!!"])).all()
    assert distinctiveness(["same words", "same words"]) == pytest.approx([0, 0], abs=1e-9)
