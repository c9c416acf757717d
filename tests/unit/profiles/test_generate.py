from pathlib import Path

import pyarrow as pa
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.generate import generate, profiles_key
from llmkt_ray.profiles.table import SCHEMA, Profiles, one_row_per_user
from llmkt_ray.study import ProfileConfig
from tests.films import film_split


def test_template_gives_one_row_for_every_user_in_index_order(data: PreparedData, store: ArtifactStore) -> None:
    profiles = generate(ProfileConfig(llm="template"), data, store, study_seed=1)
    assert profiles.table.schema.equals(SCHEMA)
    assert profiles.table.column("user_id").to_pylist() == data.user_tokens.tolist()
    assert not profiles.is_llm
    assert profiles.coverage == 1
    assert profiles.certificate.status == "verified"


def test_nothing_is_written_twice(data: PreparedData, store: ArtifactStore) -> None:
    first = generate(ProfileConfig(llm="template"), data, store, study_seed=1)
    created = store.manifest("profiles", first.key)
    calls: list[int] = []
    again = generate(ProfileConfig(llm="template"), data, store, study_seed=2, progress=lambda done, total: calls.append(done))
    assert again.key == first.key
    assert not calls
    assert store.manifest("profiles", first.key) == created
    assert Profiles.load(store, first.key).table.equals(first.table)


def test_key_depends_on_the_split_and_on_the_history_but_not_on_the_label(tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    other = film_split(tmp_path / "films", store, seed=2)
    keys = {
        profiles_key(ProfileConfig(llm="template"), data.key, 1),
        profiles_key(ProfileConfig(llm="template"), other.key, 1),
        profiles_key(ProfileConfig(llm="template", full_history=True), data.key, 1),
    }
    assert len(keys) == 3
    assert profiles_key(ProfileConfig(llm="template", name="mine"), data.key, 1) in keys


def test_one_row_per_user_reports_every_kind_of_problem_at_once(data: PreparedData, store: ArtifactStore) -> None:
    table = generate(ProfileConfig(llm="template"), data, store, study_seed=1).table
    stranger = table.slice(0, 1).set_column(0, SCHEMA.field("user_id"), pa.array(["stranger"]))
    wrong = pa.concat_tables([table.slice(2), table.slice(5, 1), stranger])
    with pytest.raises(ProfileError, match=r"2 users have no row: 'u00', 'u01'; 1 users have several rows: 'u05'; 1 ids .*: 'stranger'"):
        one_row_per_user(wrong, data.user_tokens)
    mixed = table.take(list(reversed(range(len(table)))))
    assert one_row_per_user(mixed, data.user_tokens).equals(table)
