import dataclasses
import json

import pyarrow.parquet as pq
import pytest

from llmkt_ray.errors import StorageError
from llmkt_ray.profiles.table import ProfileRow, as_table
from llmkt_ray.report import diff, merge
from llmkt_ray.report.load import load
from llmkt_ray.results.card import CARD
from llmkt_ray.results.ledger import SUGGESTIONS, Ledger
from tests.unit.report.synthetic import World, change_a_bit, result_of, specs, study_of, write

WORLD = World(models={"MultiVAE": 0.2}, seeds=2, n_users=20, epochs=4)


def test_a_study_equals_itself_whatever_it_measured(tmp_path):
    a, b = write(tmp_path / "a", WORLD), write(tmp_path / "b", WORLD, single=True)
    found = diff(a, b)
    assert (found.study, found.only_a, found.only_b, found.changed, found.cells) == ((), (), (), (), ())
    assert found.same == 17
    assert found.lines()[0] == "study: the same"


def test_other_numbers_and_outcomes_are_named(tmp_path):
    a = write(tmp_path / "a", WORLD)
    b = write(tmp_path / "b", dataclasses.replace(WORLD, treated=lambda m, al, la: 0.3), keep=lambda s: s.arm != "reference")
    found = diff(a, b)
    assert (len(found.changed), len(found.only_a), found.only_b) == (6, 3, ())
    assert found.cells[0].startswith("MultiVAE on ml-1m: inconclusive, over alpha0 +")


def test_two_clusters_halves_make_the_whole(tmp_path):
    a = write(tmp_path / "a", WORLD, keep=lambda s: s.seed_index == 0)
    b = write(tmp_path / "b", WORLD, keep=lambda s: s.seed_index == 1 or s.arm == "baseline")
    whole = write(tmp_path / "whole", WORLD)
    assert merge([a, b], tmp_path / "merged") == 17
    found = diff(whole, tmp_path / "merged")
    assert (found.same, found.changed, found.only_a, found.only_b) == (17, (), (), ())
    assert load(tmp_path / "merged").user_values("NDCG@10").keys() == load(whole).user_values("NDCG@10").keys()
    assert json.loads((tmp_path / "merged" / CARD).read_text())["finished"] is None


def test_conflicts_are_errors_and_nothing_is_written(tmp_path):
    a = write(tmp_path / "a", WORLD)
    b = write(tmp_path / "b", dataclasses.replace(WORLD, treated=lambda m, al, la: 0.3))
    with pytest.raises(StorageError, match="6 trials finished with other numbers in two folders"):
        merge([a, b], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("damage", ["half a file", "user:NDCG@10"])
@pytest.mark.parametrize("look", [merge, diff])
def test_a_damaged_row_is_named_and_not_left_out(tmp_path, damage, look):
    a, b = (write(tmp_path / name, WORLD, keep=lambda s: s.arm == "alpha0", single=True) for name in "ab")
    path = sorted((b / "ledger/trials").iterdir())[0]
    if damage == "half a file":
        path.write_bytes(path.read_bytes()[:3000])
    else:
        change_a_bit(path, damage)
    with pytest.raises(StorageError, match=rf"1 file of .* cannot be read: ledger/trials/{path.name}; bring the folder here again"):
        merge([a, b], tmp_path / "merged") if look is merge else diff(a, b)
    assert not (tmp_path / "merged").exists()


def on_device(folder, kind, arm):
    spec = next(spec for spec in specs(WORLD, study_of(WORLD)) if spec.arm == arm)
    write(folder, WORLD, keep=lambda s: False)
    Ledger(folder).record(dataclasses.replace(result_of(WORLD, spec), facts={"device_type": kind}), study_of(WORLD).key)
    return folder


def test_parts_of_two_kinds_of_devices_are_refused(tmp_path):
    """A run would refuse what came of it."""
    a, b = on_device(tmp_path / "a", "cpu", "baseline"), on_device(tmp_path / "b", "cuda", "alpha0")
    with pytest.raises(StorageError, match=r"different kinds of devices \(1 trial on 'cpu', 1 trial on 'cuda'\)"):
        merge([a, b], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert merge([a, on_device(tmp_path / "c", "cpu", "alpha0")], tmp_path / "merged") == 2


def test_the_rounds_of_a_search_come_along(tmp_path):
    """Without them a search that goes on draws its rounds anew, and their trials are not the ones that are there."""
    parts = [write(tmp_path / name, WORLD, keep=lambda s: s.arm == "alpha0") for name in "ab"]
    for part, name, text in ((0, "x-00000", "{}"), (1, "x-00000", "{}"), (1, "x-00004", '{"first": 4}')):
        Ledger(parts[part]).files.write_bytes(f"{SUGGESTIONS}/{name}.json", text.encode())
    merge(parts, tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged" / SUGGESTIONS).iterdir()) == ["x-00000.json", "x-00004.json"]
    Ledger(parts[0]).files.write_bytes(f"{SUGGESTIONS}/x-00004.json", b'{"first": 5}')
    with pytest.raises(StorageError, match=r"x-00004.json is another round of the search in .*b than in .*a"):
        merge(parts, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_merged_rows_carry_checksums(tmp_path):
    a = write(tmp_path / "a", WORLD, keep=lambda s: s.arm == "alpha0")
    merge([a], tmp_path / "merged")
    path = next((tmp_path / "merged" / "ledger/trials").iterdir())
    change_a_bit(path, "user:NDCG@10")
    with pytest.raises(StorageError, match=f"{path.name} is damaged"):
        Ledger(tmp_path / "merged").users(path.stem)


def test_a_finished_trial_stands_for_a_failed_one(tmp_path):
    a = write(tmp_path / "a", dataclasses.replace(WORLD, fails=lambda s: "killed" if s.arm == "alpha0" else None))
    b = write(tmp_path / "b", WORLD, keep=lambda s: s.arm == "alpha0")
    merge([a, b], tmp_path / "merged")
    assert set(Ledger(tmp_path / "merged").trials()["status"]) == {"done"}


@pytest.mark.parametrize("first", ["done", "pruned"])
def test_a_finished_trial_stands_for_one_that_was_ended_early_whichever_comes_first(tmp_path, first):
    """A search may end early on one cluster what finished on another: the row with a test is kept in either order."""
    is_it = lambda s: (s.arm, s.alpha, s.seed_index) == ("treated", 0.7, 0)  # noqa: E731
    done = write(tmp_path / "done", WORLD)
    pruned = write(tmp_path / "pruned", WORLD, keep=lambda s: not is_it(s), single=True)
    (spec,) = filter(is_it, specs(WORLD, study_of(WORLD)))
    early = dataclasses.replace(result_of(WORLD, spec), status="pruned", test={}, users={}, recommended=None)
    Ledger(pruned).record(early, study_of(WORLD).key)
    assert merge([done, pruned] if first == "done" else [pruned, done], tmp_path / "merged") == 17
    rows = Ledger(tmp_path / "merged").trials().set_index("trial_key")
    assert rows.loc[spec.key, "status"] == "done"


@pytest.mark.parametrize(("theirs", "equal"), [("likes jazz", True), ("likes rock", False)])
def test_texts_that_a_model_wrote_twice_are_a_conflict(tmp_path, theirs, equal):
    """The trials are disjoint and none differs, but those of one cluster learned from other texts under the same key."""
    parts = []
    for name, seed, text in (("a", 0, "likes jazz"), ("b", 1, theirs)):
        parts.append(write(tmp_path / name / "study", WORLD, keep=lambda s, seed=seed: s.seed_index == seed))
        card = json.loads((parts[-1] / CARD).read_text())
        card["profiles"][0]["key"] = "ab" * 10
        (parts[-1] / CARD).write_text(json.dumps(card))
        folder = tmp_path / name / "artifacts" / "profiles" / ("ab" * 10)
        folder.mkdir(parents=True)
        order = [0, 1] if name == "a" else [1, 0]
        rows = [ProfileRow("u0", text, "llama", "v1", 3, latency_s=seed + 0.5), ProfileRow("u1", None, "llama", "v1", 3, error="refused")]
        pq.write_table(as_table([rows[at] for at in order]), folder / "profiles.parquet")
    if equal:
        merge(parts, tmp_path / "merged")
        return
    with pytest.raises(StorageError, match=r"profiles abab\w+ have other texts beside .*b.study than beside .*a.study"):
        merge(parts, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_parts_of_different_studies_are_refused(tmp_path):
    a, b = write(tmp_path / "a", WORLD), write(tmp_path / "b", dataclasses.replace(WORLD, seeds=1))
    with pytest.raises(StorageError, match="only parts of one study can be merged"):
        merge([a, b], tmp_path / "merged")


def test_a_target_with_something_in_it_is_refused(tmp_path):
    a = write(tmp_path / "a", WORLD)
    with pytest.raises(StorageError, match="is not empty"):
        merge([a], a)


def test_a_folder_without_a_card_is_refused(tmp_path):
    ledger = Ledger(tmp_path / "a")
    ledger.record(result_of(WORLD, specs(WORLD, study_of(WORLD))[0]), "key")
    with pytest.raises(StorageError, match=r"there is no card\.json"):
        merge([tmp_path / "a"], tmp_path / "merged")
