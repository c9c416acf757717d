"""Checkpoints: exact resume at any epoch boundary, whole files only, nothing executable in them."""

import hashlib
import io
import pickle

import pytest
import torch

from llmkt_ray.errors import StorageError
from llmkt_ray.study import ScheduleConfig
from llmkt_ray.training.checkpoint import VERSION, CheckpointFile

from .conftest import make_spec, same


class Killed(Exception):
    """Stands for the process's end right after an epoch was saved."""


def stop_after(last):
    def on_epoch(row):
        if row["epoch"] == last:
            raise Killed

    return on_epoch


def whole_file(content) -> bytes:
    """A checkpoint file as it should be, with this in it."""
    sink = io.BytesIO()
    torch.save(content, sink)
    return hashlib.sha256(sink.getvalue()).hexdigest().encode() + b"\n" + sink.getvalue()


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "SimpleX", "MultiVAE", "LightGCN"])
@pytest.mark.parametrize("last", [1, 2, 3, 5])
def test_resume_is_bitwise(run, data, tmp_path, model, last):
    """Killed in phase 1, at its end, right after the switch and late in phase 2: the result is that of an unbroken trial."""
    changes = {"epochs": 6, "schedule": ScheduleConfig(handover="best_valid", optimizer="keep")}
    options = {"checkpoint_dir": tmp_path, "checkpoint_interval_s": 0.0}
    with pytest.raises(Killed):
        run(model, "treated", options=options | {"on_epoch": stop_after(last)}, **changes)
    assert len(list(tmp_path.iterdir())) == 1
    seen = []
    resumed = run(model, "treated", options=options | {"on_epoch": lambda row: seen.append(row["epoch"])}, **changes)
    assert seen == list(range(last + 1, 7))
    same(resumed, run(model, "treated", **changes))
    assert resumed.facts["transfer_steps"] == 3 * resumed.facts["batches_per_epoch"]
    assert len(list(tmp_path.iterdir())) == 1, "it stays until the result is kept"


def test_resume_with_projection_and_reset(run, tmp_path):
    changes = {"epochs": 6, "projection": "student", "loss": "mse"}
    for last in (2, 4):
        options = {"checkpoint_dir": tmp_path / str(last), "checkpoint_interval_s": 0.0}
        with pytest.raises(Killed):
            run("MultiVAE", "shuffled", options=options | {"on_epoch": stop_after(last)}, **changes)
        same(run("MultiVAE", "shuffled", options=options, **changes), run("MultiVAE", "shuffled", **changes))


def test_a_checkpoint_of_another_trial_or_a_damaged_one_is_not_used(run, data, tmp_path):
    spec = make_spec(data, "BPR")
    path = tmp_path / f"{spec.key}.pt"
    whole = run("BPR")
    for content in (b"", b"not a checkpoint", b"half a file", pickle.dumps({"version": VERSION})):
        path.write_bytes(content)
        same(run("BPR", options={"checkpoint_dir": tmp_path}), whole)
    path.write_bytes(whole_file({"version": VERSION, "key": "someone else's", "epoch": 2, "state": {}}))
    same(run("BPR", options={"checkpoint_dir": tmp_path}), whole)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.6, 0.8, 0.999])
def test_a_checkpoint_with_a_changed_bit_is_not_used(run, data, tmp_path, share):
    """Torch reads most of these as if nothing had happened to them, and the trial's numbers would be others."""
    options = {"checkpoint_dir": tmp_path, "checkpoint_interval_s": 0.0}
    with pytest.raises(Killed):
        run("BPR", options=options | {"on_epoch": stop_after(2)}, epochs=4)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 64
    path.write_bytes(content)
    seen = []
    same(run("BPR", options=options | {"on_epoch": lambda row: seen.append(row["epoch"])}, epochs=4), run("BPR", epochs=4))
    assert seen == [1, 2, 3, 4], "it starts again"


def test_a_checkpoint_cannot_execute_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    file = CheckpointFile(tmp_path, "k")
    file.path.write_bytes(whole_file({"version": VERSION, "key": "k", "epoch": 1, "state": Evil()}))
    assert file.load(torch.device("cpu")) is None
    assert not (tmp_path / "owned").exists()


def test_a_half_written_file_never_takes_the_place_of_a_whole_one(tmp_path, monkeypatch):
    file = CheckpointFile(tmp_path, "k", 0.0)
    file.save(1, lambda: {"weights": torch.ones(3)})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="no space left"):
        file.save(2, lambda: {"weights": torch.zeros(3)})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["k.pt"]
    saved = file.load(torch.device("cpu"))
    assert saved is not None
    assert saved[0] == 1


def test_fresh_checkpoints_are_not_written_again(tmp_path):
    file = CheckpointFile(tmp_path, "k", 1000.0)
    file.save(1, lambda: pytest.fail("asked for the state"))
    assert file.load(torch.device("cpu")) is None


def test_what_a_killed_process_left_of_it_goes_with_it(tmp_path):
    """SIGKILL in the middle of a write runs no `finally`: the part of a file stays until the trial ends."""
    file, other = CheckpointFile(tmp_path, "a", 0.0), CheckpointFile(tmp_path, "b", 0.0)
    for each in (file, other):
        each.save(1, dict)
        each.path.with_name(f".{each.path.name}.1b002dba.partial").write_bytes(b"PK")
    file.delete()
    assert {path.name for path in tmp_path.iterdir()} == {"b.pt", ".b.pt.1b002dba.partial"}
