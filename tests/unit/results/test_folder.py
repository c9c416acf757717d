import json
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import filelock
import pytest
import yaml

from llmkt_ray.errors import StorageError
from llmkt_ray.results import folder as folders
from llmkt_ray.results.card import finish_card, read_card, write_card
from llmkt_ray.results.folder import claim, holder, locked, owner_problem, study_folder, write_problem
from llmkt_ray.study import StudyConfig

HOLD = """
import sys
from llmkt_ray.results.folder import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def study(tmp_path, **changes) -> StudyConfig:
    values = {"name": "one", "datasets": [{"name": "toy", "path": "."}], "models": ["BPR"], "storage": str(tmp_path)}
    return StudyConfig.model_validate(values | changes)


def test_a_folder_belongs_to_the_study_that_claimed_it(tmp_path):
    mine = study(tmp_path)
    claim(mine)
    claim(mine)
    assert yaml.safe_load((tmp_path / "one" / "study.yaml").read_text())["key"] == mine.key
    with pytest.raises(StorageError, match=r"belongs to another study .*seeds.* changed\); give this study another `name`"):
        claim(study(tmp_path, seeds=7))


def test_settings_that_change_no_number_do_not_change_the_owner(tmp_path):
    claim(study(tmp_path))
    assert owner_problem(study(tmp_path, description="other words", resources={"trial": {"cpus": 2}})) is None


def test_a_foreign_study_file_is_not_overwritten(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "study.yaml").write_text("a list: [of, something]")
    with pytest.raises(StorageError, match="not what a study leaves there"):
        claim(study(tmp_path))


def test_two_processes_cannot_hold_one_folder_and_a_killed_one_leaves_it_free(tmp_path):
    target = str(tmp_path / "one")
    other = subprocess.Popen([sys.executable, "-c", HOLD, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        assert holder(target)["pid"] == other.pid
        with pytest.raises(StorageError, match=f"run already in .*process {other.pid} on"), locked(target):
            pytest.fail("the lock was given twice")
    finally:
        other.kill()
        other.wait()
    assert holder(target) is None
    with locked(target):
        assert holder(target)["pid"] == os.getpid()
    assert holder(target) is None


def test_who_looks_whether_a_folder_is_held_keeps_nobody_out(tmp_path, monkeypatch):
    """`llmkt status` in a loop while a run begins: to look is to hold the lock for a moment."""
    monkeypatch.setattr(folders, "PROBE_S", 30.0)  # whoever looks is done within it on any machine
    target = str(tmp_path / "one")
    (tmp_path / "one").mkdir()
    looking = filelock.FileLock(tmp_path / "one" / folders.LOCK, thread_local=False)
    looking.acquire()
    timer = threading.Timer(0.1, looking.release)
    timer.start()
    with locked(target):
        assert holder(target)["pid"] == os.getpid()
    timer.join()


@pytest.fixture
def remote(monkeypatch):
    """A folder without file locks, where all takes a fraction of its time."""
    monkeypatch.setattr(folders.FileStore, "__init__", _remote(folders.FileStore.__init__))
    for name, seconds in (("HEARTBEAT_S", 0.05), ("LOOK_S", 0.02), ("SETTLE_S", 0.1), ("STALE_S", 0.6)):
        monkeypatch.setattr(folders, name, seconds)


def silent(target, started: str) -> None:
    """What a killed driver leaves."""
    target.mkdir(exist_ok=True)
    (target / "run.json").write_text(json.dumps({"host": "gone", "pid": 1, "started": started, "alive": started, "id": "x"}))


@pytest.mark.usefixtures("remote")
def test_on_remote_storage_a_holder_that_lives_keeps_others_out(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_now", lambda: "2020-01-01T00:00:00+00:00")  # its clock is years behind
    target = tmp_path / "one"
    with locked(target):
        with pytest.raises(StorageError, match=rf"run already .* \(process {os.getpid()} on"), locked(target):
            pytest.fail("the lock was given twice")
        assert (target / "run.json").exists()
    assert not (target / "run.json").exists()


@pytest.mark.usefixtures("remote")
@pytest.mark.parametrize("started", ["2020-01-01T00:00:00+00:00", "2099-01-01T00:00:00+00:00"])
def test_on_remote_storage_a_driver_that_was_killed_just_now_is_waited_for_and_taken_over(tmp_path, started):
    """Whatever its clock said: a job that is started again at once must not end because of its own first attempt."""
    silent(tmp_path / "one", started)
    said, began = list[str](), time.monotonic()
    with locked(tmp_path / "one", said.append):
        assert time.monotonic() - began >= folders.STALE_S - 0.2
        assert json.loads((tmp_path / "one" / "run.json").read_text())["pid"] == os.getpid()
    assert [sentence.partition("; waiting up to ")[0] for sentence in said] == ["process 1 on gone was running this study"]


@pytest.mark.usefixtures("remote")
def test_on_remote_storage_one_that_has_long_been_silent_is_not_waited_for(tmp_path, monkeypatch):
    silent(tmp_path / "one", "2099-01-01T00:00:00+00:00")
    os.utime(tmp_path / "one" / "run.json", (1, 1))
    monkeypatch.setattr(folders, "LOOK_S", 1000.0)
    with locked(tmp_path / "one", lambda sentence: pytest.fail(sentence)):
        assert json.loads((tmp_path / "one" / "run.json").read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("remote")
def test_on_remote_storage_a_run_that_was_suspended_and_taken_over_leaves_the_folder_alone(tmp_path):
    target = tmp_path / "one"
    with locked(target) as hold:
        hold.check()
        silent(target, "2099-01-01T00:00:00+00:00")
        end = time.monotonic() + 30
        while hold.lost is None and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(StorageError, match=r"run already in .* \(process 1 on gone"):
            hold.check()
        time.sleep(3 * folders.HEARTBEAT_S)
        assert json.loads((target / "run.json").read_text())["id"] == "x", "it wrote its name over the other's"
    assert (target / "run.json").exists(), "it took the other's name away"


def test_on_remote_storage_of_two_that_found_nobody_one_is_refused_and_leaves_the_other_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.FileStore, "__init__", _remote(folders.FileStore.__init__))
    monkeypatch.setattr(folders, "_await_silence", lambda *_: None)  # as both of them saw it
    both = threading.Barrier(2)
    monkeypatch.setattr(folders, "time", SimpleNamespace(sleep=lambda _: both.wait(30)))  # each settles until the other has written
    target, inside, refused, leave = tmp_path / "one", list[str](), list[str](), threading.Event()

    def work(name: str) -> None:
        try:
            with locked(target):
                inside.append(name)
                leave.wait(30)
        except StorageError:
            refused.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("first", "second")]
    threads[0].start()
    while not (target / "run.json").exists():
        time.sleep(0.01)
    threads[1].start()
    end = time.monotonic() + 30
    while len(inside) + len(refused) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    there = (target / "run.json").exists()
    leave.set()
    for thread in threads:
        thread.join()
    assert (inside, refused) == (["second"], ["first"])
    assert there, "the one that was refused took the other's name away"


def test_on_remote_storage_a_holder_lives_on_when_one_of_its_beats_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.FileStore, "__init__", _remote(folders.FileStore.__init__))
    monkeypatch.setattr(folders, "HEARTBEAT_S", 0.02)
    write, failures = folders.FileStore.write_bytes, list[str]()

    def fails_once(files, name, data):
        if threading.current_thread().name == "llmkt-lock" and not failures:
            failures.append(name)
            raise StorageError("the storage does not answer")
        write(files, name, data)

    monkeypatch.setattr(folders.FileStore, "write_bytes", fails_once)
    with locked(tmp_path / "one"):
        (tmp_path / "one" / "run.json").unlink()
        end = time.monotonic() + 30
        while not (tmp_path / "one" / "run.json").exists():
            assert time.monotonic() < end, "its heart stopped"
            time.sleep(0.01)
    assert failures == ["run.json"]


def _remote(init):
    def wrapped(self, root):
        init(self, root)
        self.is_local = False
        os.makedirs(self.path(""), exist_ok=True)

    return wrapped


def test_a_folder_that_cannot_be_written_is_told_and_nothing_is_left(tmp_path):
    assert write_problem(tmp_path / "new") is None
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    assert "file" in write_problem(tmp_path / "file" / "below")


def test_the_card_keeps_its_start_and_gets_its_end_once(tmp_path):
    one = study(tmp_path)
    where = study_folder(one)
    assert read_card(where) is None
    write_card(where, one, {"cells": [], "planned_trials": 3})
    first = read_card(where)
    assert (first["key"], first["planned_trials"], first["finished"]) == (one.key, 3, None)
    assert {"python", "torch", "ray"} <= set(first["versions"])
    finish_card(where)
    ended = read_card(where)["finished"]
    write_card(where, one, {"cells": [], "planned_trials": 3})
    assert (read_card(where)["started"], read_card(where)["finished"]) == (first["started"], ended)


def test_a_damaged_card_is_told(tmp_path):
    (tmp_path / "card.json").write_text("{half")
    with pytest.raises(StorageError, match=r"card.json is damaged"):
        read_card(tmp_path)
