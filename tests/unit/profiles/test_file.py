import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.split import prepare
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.file import FileManifest, write_folder
from llmkt_ray.profiles.generate import generate, profiles_key
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.study import DatasetConfig, ProfileConfig
from llmkt_ray.study_file import parse_study
from tests.films import film_split


def _table(data: PreparedData, **changes: Any) -> pa.Table:
    texts = {str(user): f"likes what {user} likes" for user in data.user_tokens} | changes
    return pa.table({"user_id": list(texts), "profile": pa.array(list(texts.values()), pa.string())})


def _read(path: Path, data: PreparedData, store: ArtifactStore, **config: Any) -> Profiles:
    return generate(ProfileConfig(llm="file", path=str(path), **config), data, store, study_seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "profiles"


def test_bare_file_runs_with_an_unknown_certificate(tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    pq.write_table(_table(data), tmp_path / "mine.parquet")
    profiles = _read(tmp_path / "mine.parquet", data, store)
    assert profiles.certificate.status == "unknown"
    assert not profiles.certificate.allows_verdict
    assert profiles.is_llm
    assert profiles.coverage == 1
    assert set(profiles.table.column("llm").to_pylist()) == {"mine"}


@pytest.mark.parametrize("split", ["key", "digest", "column"])
def test_manifest_that_names_this_split(split: str, folder: Path, data: PreparedData, store: ArtifactStore) -> None:
    named = {"key": data.key, "digest": data.notes["train_digest"], "column": "column"}[split]
    write_folder(folder, _table(data), FileManifest(llm="gpt-4o-mini", split=str(named)))
    profiles = _read(folder, data, store)
    assert profiles.certificate.status == "declared"
    assert set(profiles.table.column("llm").to_pylist()) == {"gpt-4o-mini"}


def test_manifest_that_names_another_split(folder: Path, tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    other = film_split(tmp_path / "films", store, split="random")
    assert other.notes["train_digest"] != data.notes["train_digest"]
    for named in (other.key, str(other.notes["train_digest"])):
        write_folder(folder, _table(data), FileManifest(llm="x", split=named))
        with pytest.raises(ProfileError, match=f"declared for split '{named}'.*uses another"):
            _read(folder, data, store)
    # "column" is this dataset's own column only where the study splits by it.
    write_folder(folder, _table(data), FileManifest(llm="x", split="column"))
    with pytest.raises(ProfileError, match="declared for split 'column'"):
        _read(folder, other, store)


def test_study_declares_the_split_of_a_file_without_a_manifest(tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    pq.write_table(_table(data), tmp_path / "mine.parquet")
    assert _read(tmp_path / "mine.parquet", data, store, declares_split="column").certificate.status == "declared"
    with pytest.raises(ProfileError, match="declared for split 'deadbeef'"):
        _read(tmp_path / "mine.parquet", data, store, declares_split="deadbeef")


def test_manifest_and_study_must_agree(folder: Path, data: PreparedData, store: ArtifactStore) -> None:
    write_folder(folder, _table(data), FileManifest(llm="x", split=data.key))
    with pytest.raises(ProfileError, match="remove one of the two"):
        _read(folder, data, store, declares_split="column")


def test_a_duplicate_user_is_refused(tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    table = _table(data)
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), tmp_path / "p.parquet")
    with pytest.raises(ProfileError, match=r"more than one row for 1 values of `user_id` \('u03'\)"):
        _read(tmp_path / "p.parquet", data, store)


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())],
    ids=str,
)
def test_texts_are_strings_of_any_kind(kind: pa.DataType, tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    table = _table(data)
    pq.write_table(table.set_column(1, "profile", table.column("profile").cast(kind)), tmp_path / "p.parquet")
    assert pq.read_schema(tmp_path / "p.parquet").field("profile").type == kind
    profiles = _read(tmp_path / "p.parquet", data, store)
    assert profiles.table.column("profile").to_pylist() == table.column("profile").to_pylist()


def test_missing_and_empty_users_are_masked_up_to_the_threshold(tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    pq.write_table(_table(data, u00=None, u01="  \n").slice(0, len(data.user_tokens) - 1), tmp_path / "p.parquet")
    profiles = _read(tmp_path / "p.parquet", data, store)
    assert len(profiles.table) == data.n_users
    assert profiles.coverage == pytest.approx(37 / 40)
    rows = profiles.table.to_pylist()
    assert [rows[i]["profile"] for i in (0, 1, 39)] == [None, None, None]
    assert [rows[i]["error"].partition(":")[0] for i in (0, 1, 39)] == ["empty", "empty", "missing"]
    assert "u00" not in profiles.texts()[0]
    with pytest.raises(ProfileError, match=r"92\.5% of the 40 users.*empty: .*: 2 users \('u00', 'u01'\); missing: .*: 1 users \('u39'\)"):
        _read(tmp_path / "p.parquet", data, store, min_coverage=0.95)


def test_unknown_users_are_left_out_and_said(tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    pq.write_table(_table(data, stranger="likes rain"), tmp_path / "p.parquet")
    profiles = _read(tmp_path / "p.parquet", data, store)
    assert len(profiles.table) == data.n_users
    assert "1 ids of the file are not users of the split and are left out: 'stranger'" in profiles.notes["warnings"][0]


def test_ids_of_another_numbering_are_refused(tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    pq.write_table(pa.table({"user_id": range(40), "profile": ["text"] * 40}), tmp_path / "p.parquet")
    with pytest.raises(ProfileError, match=r"0\.0% of the 40 users.*40 ids of the file are not users.*Check that the ids are those"):
        _read(tmp_path / "p.parquet", data, store)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": ["u00"], "profile": ["a"]}, "has no column 'user_id'"),
        ({"user_id": ["u00"], "text": ["a"]}, "has no column 'profile'"),
        ({"user_id": [0.5], "profile": ["a"]}, r"double in `user_id` and string in `profile`; ids must be strings"),
        ({"user_id": ["u00"], "profile": [1]}, r"int64 in `profile`"),
        ({"user_id": ["u00", None], "profile": ["a", "b"]}, r"1 rows without a value in `user_id`"),
    ],
)
def test_wrong_columns(columns: dict[str, list[Any]], message: str, tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(ProfileError, match=message):
        _read(tmp_path / "p.parquet", data, store)


def test_absent_path_and_file_that_is_not_parquet(tmp_path: Path, data: PreparedData, store: ArtifactStore) -> None:
    with pytest.raises(ProfileError, match="is not there; give a Parquet file"):
        profiles_key(ProfileConfig(llm="file", path=str(tmp_path / "no.parquet")), data.key, 1)
    with pytest.raises(ProfileError, match=r"a folder without 'profiles\.parquet'"):
        profiles_key(ProfileConfig(llm="file", path=str(tmp_path)), data.key, 1)
    (tmp_path / "p.parquet").write_text("user_id,profile\n")
    with pytest.raises(ProfileError, match="cannot be read as Parquet"):
        _read(tmp_path / "p.parquet", data, store)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("not json", "is not a manifest of profiles"),
        (json.dumps({"llm": "x", "splitt": "y"}), "is not a manifest of profiles.*splitt"),
        (json.dumps({"llm": "x", "format": "other/9"}), "has format 'other/9'"),
    ],
)
def test_bad_manifest(manifest: str, message: str, folder: Path, data: PreparedData, store: ArtifactStore) -> None:
    write_folder(folder, _table(data), FileManifest(llm="x"))
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(ProfileError, match=message):
        _read(folder, data, store)


def test_key_follows_the_content_not_the_place(tmp_path: Path, data: PreparedData) -> None:
    for place in ("a", "b", "c"):
        changes = {"u05": "other"} if place == "c" else {}
        write_folder(tmp_path / place, _table(data, **changes), FileManifest(llm="x", split=data.key))
    keys = [profiles_key(ProfileConfig(llm="file", path=str(tmp_path / place)), data.key, 1) for place in ("a", "b", "c")]
    assert keys[0] == keys[1] != keys[2]
    assert profiles_key(ProfileConfig(llm="file", path=str(tmp_path / "a")), data.key, 2) == keys[0]
    assert profiles_key(ProfileConfig(llm="file", path=str(tmp_path / "a")), "other-split", 1) != keys[0]


def test_declares_split_belongs_to_files() -> None:
    study = "name: s\ndatasets: [{name: ml-100k}]\nmodels: [BPR]\nprofiles: [{llm: template, declares_split: column}]"
    with pytest.raises(Exception, match="`declares_split` belongs to llm 'file', not to 'template'"):
        parse_study(study)


@pytest.mark.shared_data
def test_real_profiles_of_a_given_split_are_declared(store: ArtifactStore) -> None:
    shared = Path(__file__).parents[4] / "shared" / "data" / "ml-100k"
    if not shared.is_dir():
        pytest.skip(f"{shared} is not there")
    config = DatasetConfig(name="ml-100k", path=str(shared), positive={"rating_at_least": 4}, split={"kind": "column"})
    data = prepare(config, study_seed=1, store=store)
    for name in ("profiles_gpt-4o-mini-short", "profiles_gpt-structured"):
        profiles = _read(shared / f"{name}.parquet", data, store, declares_split="column")
        assert profiles.certificate.status == "declared"
        assert profiles.coverage >= 942 / 943 - 1e-9
