"""The split artifact: complete, frozen, keyed by content, and equal whoever computes it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PARTS, PreparedData
from llmkt_ray.data.split import prepare, split_key
from llmkt_ray.errors import DatasetError
from llmkt_ray.study import DatasetConfig
from tests.unit.data.conftest import MakeDataset

Ratings = dict[str, list[Any]]


def rows_of(data: PreparedData, part: str) -> list[tuple[str, str, float, float, bool]]:
    rows = {"train": data.train_full, "valid": data.valid, "test": data.test}[part]
    columns = (data.user_tokens[rows.user], data.item_tokens[rows.item], rows.rating, rows.timestamp, rows.positive)
    return [(str(u), str(i), float(r), float(t), bool(p)) for u, i, r, t, p in zip(*columns, strict=True)]


@pytest.mark.parametrize("kind", ["random", "leave_one_out", "time"])
def test_no_row_is_lost_or_changed(kind: str, ratings: Ratings, make_dataset: MakeDataset, store: ArtifactStore) -> None:
    data = prepare(make_dataset(ratings, positive={"rating_at_least": 4}, split={"kind": kind}), study_seed=1, store=store)
    stored = sorted(row for part in PARTS for row in rows_of(data, part))
    columns = (ratings["user_id"], ratings["item_id"], ratings["rating"], ratings["timestamp"])
    assert stored == sorted((u, i, r, float(t), r >= 4) for u, i, r, t in zip(*columns, strict=True))


def test_trap_14_ratings_below_the_threshold_are_kept_but_are_no_positives(
    ratings: Ratings, make_dataset: MakeDataset, store: ArtifactStore
) -> None:
    data = prepare(make_dataset(ratings, positive={"rating_at_least": 4}), study_seed=1, store=store)
    for rows in (data.train, data.valid, data.test):
        assert rows.rating.min() < 4, "the labelled protocol and the histories need these rows"
        assert (rows.positives().rating >= 4).all()
        assert len(rows.positives()) == (rows.rating >= 4).sum()


def test_tokens_are_sorted_and_rows_are_in_order_of_time(ratings: Ratings, make_dataset: MakeDataset, store: ArtifactStore) -> None:
    data = prepare(make_dataset(ratings), study_seed=1, store=store)
    assert data.user_tokens.tolist() == sorted(set(ratings["user_id"]))
    assert data.item_tokens.tolist() == sorted(set(ratings["item_id"]))
    assert data.users.column("user_id").to_pylist() == data.user_tokens.tolist()
    order = np.lexsort((data.train.timestamp, data.train.user))
    assert np.array_equal(order, np.arange(len(data.train)))


def test_ratings_and_times_that_a_dataset_lacks(make_dataset: MakeDataset, store: ArtifactStore) -> None:
    config = make_dataset({"user_id": [1, 1, 1, 2, 2, 2], "item_id": [9, 8, 7, 9, 8, 7]})
    data = prepare(config, study_seed=1, store=store)
    assert data.train.rating.tolist() == [1.0] * len(data.train)
    assert np.isnan(data.train.timestamp).all()
    assert data.train.positive.all()
    assert (data.notes["has_ratings"], data.notes["has_timestamps"]) == (False, False)
    assert data.user_tokens.tolist() == ["1", "2"]


@pytest.mark.parametrize("name", ["count", "plays", "weight"])
def test_counts_of_implicit_feedback_stay_with_their_rows(name: str, make_dataset: MakeDataset, store: ArtifactStore) -> None:
    users, items = [u for u in range(4) for _ in range(10)], list(range(10)) * 4
    config = make_dataset({"user_id": users, "item_id": items, name: [100 * u + i + 1 for u, i in zip(users, items, strict=True)]})
    data = prepare(config, study_seed=1, train_share=0.5, store=store)
    rows = [data.train, data.train_full, data.valid, data.test, data.with_held_out_as_train().train]
    assert len(data.train) < len(data.train_full)
    for part in rows:
        assert part.count is not None
        expected = [100 * int(data.user_tokens[u]) + int(data.item_tokens[i]) + 1 for u, i in zip(part.user, part.item, strict=True)]
        assert part.count.tolist() == expected
    assert data.notes["has_counts"]
    assert data.train.rating.tolist() == [1.0] * len(data.train)


def test_a_split_is_computed_once(ratings: Ratings, make_dataset: MakeDataset, store: ArtifactStore) -> None:
    config = make_dataset(ratings)
    key = prepare(config, study_seed=1, store=store).key
    written = Path(store.root, "split", key, "arrays.safetensors").stat().st_mtime_ns
    assert prepare(config, study_seed=1, store=store).key == key
    assert Path(store.root, "split", key, "arrays.safetensors").stat().st_mtime_ns == written


def test_the_key_is_of_the_content_and_the_rules(ratings: Ratings, make_dataset: MakeDataset) -> None:
    def key(config: DatasetConfig, study_seed: int = 1, repetition: int = 0, train_share: float = 1.0) -> str:
        return split_key(config, study_seed=study_seed, repetition=repetition, train_share=train_share)

    config = make_dataset(ratings)
    assert key(config) == key(make_dataset(ratings, folder="elsewhere"))
    assert key(config) == key(config.model_copy(update={"train_share": (0.5,)})), "the list of levels is not part of one level"
    same_but_kind = make_dataset(ratings, split={"kind": "leave_one_out", "ratios": [0.6, 0.2, 0.2]})
    assert key(same_but_kind) == key(make_dataset(ratings, split={"kind": "leave_one_out"})), "ratios mean nothing to leave_one_out"
    backwards = {name: values[::-1] for name, values in ratings.items()}
    different = {
        key(config), key(config, study_seed=2), key(config, repetition=1), key(config, train_share=0.5), key(same_but_kind),
        key(make_dataset(ratings, name="other")), key(make_dataset(ratings, positive={"rating_at_least": 4})),
        key(make_dataset(ratings, filters={"user_min": 5})), key(make_dataset(ratings, split={"ratios": [0.6, 0.2, 0.2]})),
        key(make_dataset(backwards, folder="backwards")),
    }  # fmt: skip
    assert len(different) == 10


def test_permuted_rows_change_the_key_but_not_the_split(ratings: Ratings, make_dataset: MakeDataset, store: ArtifactStore) -> None:
    backwards = {name: values[::-1] for name, values in ratings.items()}
    one = prepare(make_dataset(ratings), study_seed=1, store=store)
    two = prepare(make_dataset(backwards, folder="backwards"), study_seed=1, store=store)
    assert one.key != two.key
    assert one.notes["train_digest"] == two.notes["train_digest"]
    for part in PARTS:
        assert sorted(rows_of(one, part)) == sorted(rows_of(two, part))


def test_another_process_computes_the_same_bytes(ratings: Ratings, make_dataset: MakeDataset, store: ArtifactStore, tmp_path: Path) -> None:
    config = make_dataset(ratings, positive={"rating_at_least": 4})
    prepare(config, study_seed=3, store=store, train_share=0.5)
    code = (
        "import sys; from llmkt_ray.artifacts import ArtifactStore; from llmkt_ray.data.split import prepare; "
        "from llmkt_ray.study import DatasetConfig; "
        "prepare(DatasetConfig.model_validate_json(sys.argv[1]), study_seed=3, store=ArtifactStore(sys.argv[2]), train_share=0.5)"
    )
    subprocess.run([sys.executable, "-c", code, config.model_dump_json(), str(tmp_path / "again")], check=True)
    key = split_key(config, study_seed=3, repetition=0, train_share=0.5)
    here, there = store.manifest("split", key), ArtifactStore(tmp_path / "again").manifest("split", key)
    assert here.files["arrays.safetensors"] == there.files["arrays.safetensors"]
    assert here.files["facts.json"] == there.files["facts.json"]


def test_repetitions_are_different_splits(ratings: Ratings, make_dataset: MakeDataset, store: ArtifactStore) -> None:
    config = make_dataset(ratings, split={"repetitions": 2})
    one, two = (prepare(config, study_seed=1, repetition=repetition, store=store) for repetition in (0, 1))
    assert rows_of(one, "test") != rows_of(two, "test")


def test_thinning_leaves_masks_and_held_out_rows_alone(ratings: Ratings, make_dataset: MakeDataset, store: ArtifactStore) -> None:
    config = make_dataset(ratings)
    whole, thinned = (prepare(config, study_seed=1, store=store, train_share=share) for share in (1.0, 0.25))
    for part in PARTS:
        assert rows_of(whole, part) == rows_of(thinned, part), "the parts, and train_full, of which masks are made"
    full = np.bincount(thinned.train_full.user)
    expected = np.minimum(full, np.maximum(3, np.floor(0.25 * full + 0.5)))
    assert np.array_equal(np.bincount(thinned.train.user, minlength=len(full)), expected)
    cells = thinned.n_users * thinned.n_items
    sparsity = thinned.notes["sparsity"]
    assert isinstance(sparsity, dict)
    assert sparsity["train"] == pytest.approx(1 - expected.sum() / cells)
    assert sparsity["train_full"] == pytest.approx(1 - full.sum() / cells)
    assert sparsity["all"] == pytest.approx(1 - len(ratings["user_id"]) / cells)


def test_users_that_cannot_be_evaluated_or_profiled_are_counted(make_dataset: MakeDataset, store: ArtifactStore) -> None:
    config = make_dataset(
        {
            "user_id": list("aaaabbbbc"),
            "item_id": list("wxyzwxyzw"),
            "rating": [5, 5, 5, 5, 5, 5, 1, 1, 5],
            "split": ["train", "train", "test", "test", "train", "train", "test", "test", "test"],
        },
        positive={"rating_at_least": 4},
        split={"kind": "column"},
    )
    notes = prepare(config, study_seed=1, store=store).notes
    assert notes["users_without_test_positives"] == 1, "b has none; the single one of c goes to test"
    assert notes["users_without_valid_positives"] == 2
    assert notes["users_without_train"] == 1
    assert notes["positives"] == {"train": 4, "valid": 1, "test": 2, "train_kept": 4}


def test_features_follow_the_tokens_and_gaps_are_told(make_dataset: MakeDataset, store: ArtifactStore) -> None:
    config = make_dataset(
        {"user_id": list("aaabbb"), "item_id": ["10", "9", "8", "10", "9", "8"]},
        items={"item_id": ["8", "99", "10"], "title": ["Eight (1999)", "nobody's", "Ten (2001)"], "genres": ["A|B", "C", ""]},
        domain="movies",
    )
    data = prepare(config, study_seed=1, store=store)
    assert data.items.column("item_id").to_pylist() == ["10", "8", "9"]
    assert data.items.column("title").to_pylist() == ["Ten", "Eight", None]
    assert data.items.column("year").to_pylist() == ["2001", "1999", None]
    assert data.items.column("genres").to_pylist() == [None, ["A", "B"], None]
    assert any("no row for 1 of 3 items" in str(warning) for warning in data.notes["warnings"])  # type: ignore[attr-defined]


def test_unusable_data_is_refused_with_every_problem_and_nothing_is_written(make_dataset: MakeDataset, store: ArtifactStore) -> None:
    config = make_dataset(
        {"user_id": ["a", "a", ""], "item_id": ["x", "x", "y"], "rating": [1.0, float("nan"), 2.0]}, split={"kind": "time"}
    )
    with pytest.raises(DatasetError, match=r"(?s)user_id is empty.*rating is not a finite number.*needs timestamps"):
        prepare(config, study_seed=1, store=store)
    assert not store.files.list("split", recursive=True)


def test_ml_100k_needs_nothing_but_the_installed_packages(store: ArtifactStore) -> None:
    data = prepare(DatasetConfig(name="ml-100k", positive={"rating_at_least": 4}), study_seed=2026, store=store)  # type: ignore[arg-type]
    assert (data.n_users, data.n_items, data.domain) == (943, 1682, "movies")
    assert len(data.train_full) + len(data.valid) + len(data.test) == 100_000
    assert sum(data.notes["positives"][part] for part in PARTS) == 55_375  # type: ignore[index]
    first = dict(zip(data.items.column_names, (c[0].as_py() for c in data.items.columns), strict=True))
    assert first == {"item_id": "1", "title": "Toy Story", "year": "1995", "genres": ["Animation", "Children's", "Comedy"]}


def test_reading_the_bundled_dataset_does_not_import_recbole() -> None:
    code = (
        "import sys; from llmkt_ray.data.catalog import load_raw; from llmkt_ray.study import DatasetConfig; "
        "load_raw(DatasetConfig(name='ml-100k')); assert not {'recbole', 'torch', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.shared_data
def test_the_given_split_of_ml_1m(shared: Path, store: ArtifactStore) -> None:
    config = DatasetConfig(name="ml-1m", path=str(shared / "ml-1m"), positive={"rating_at_least": 4}, split={"kind": "column"})  # type: ignore[arg-type]
    data = prepare(config, study_seed=1, store=store)
    assert (data.n_users, data.n_items, len(data.train), len(data.valid) + len(data.test)) == (6040, 3706, 800_164, 200_045)
    assert data.notes["warnings"] == []
    again = PreparedData.load(store, data.key)
    assert np.array_equal(again.test.item, data.test.item)


@pytest.mark.shared_data
def test_the_given_split_of_ml_100k_has_titles_from_the_wheel(shared: Path, store: ArtifactStore) -> None:
    config = DatasetConfig(name="given", path=str(shared / "ml-100k"), split={"kind": "column"})  # type: ignore[arg-type]
    data = prepare(config, study_seed=1, store=store)
    assert data.items.column("title")[0].as_py() == "Toy Story"
    assert len(data.train) == 80_000
    assert data.notes["users_without_test_positives"] == 943 - 459


@pytest.mark.shared_data
def test_lastfm_without_ratings_or_times(shared: Path, store: ArtifactStore) -> None:
    config = DatasetConfig(name="lastfm", path=str(shared / "lastfm"), domain="music", split={"kind": "column"})  # type: ignore[arg-type]
    data = prepare(config, study_seed=1, store=store)
    assert (data.n_users, data.n_items, len(data.train)) == (1859, 2813, 57_786)
    assert data.notes["item_fields"] == {"description": pytest.approx(0.5592)}
