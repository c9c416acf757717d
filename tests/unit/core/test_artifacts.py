"""Artifacts: whole or not there at all, whatever happens while they are written."""

import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkt_ray.artifacts import MANIFEST, ArtifactStore, FileStore, below, storage_problem
from llmkt_ray.errors import ArtifactError, StorageError

ARRAYS = {
    "train_user": np.arange(12, dtype=np.int32),
    "matrix": np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3),
    "present": np.array([True, False, True]),
    "scalar": np.array(2.5),
    "empty": np.empty((0, 4), np.float64),
    "counts": np.array([1, 2**31], dtype=np.uint32),
}
TABLE = pa.table({"user_id": ["u1", "u2"], "profile": ["likes jazz", "likes ü"]})


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def save(store: ArtifactStore, key: str = "k1") -> None:
    store.save(
        "targets", key, inputs={"seed": 1}, arrays=ARRAYS, tables={"users": TABLE}, documents={"facts": {"a": [1]}}, notes={2: "b", 10: "c"}
    )


def folder(store: ArtifactStore, key: str = "k1") -> Path:
    return Path(store.root) / "targets" / key


def test_everything_comes_back_as_it_was(store: ArtifactStore) -> None:
    save(store)
    manifest = store.find("targets", "k1")
    assert manifest is not None
    assert manifest.inputs == {"seed": 1}
    assert manifest.notes == {"2": "b", "10": "c"}
    arrays = store.arrays("targets", "k1")
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert (arrays[name].shape, arrays[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(arrays[name], array)
    assert store.table("targets", "k1", "users").equals(TABLE)
    assert store.document("targets", "k1", "facts") == {"a": [1]}


def test_a_transposed_and_a_big_endian_array_keep_their_values(store: ArtifactStore) -> None:
    store.save("k", "a", inputs={}, arrays={"t": np.arange(6.0).reshape(2, 3).T, "b": np.arange(3, dtype=">i4")})
    arrays = store.arrays("k", "a")
    np.testing.assert_array_equal(arrays["t"], np.arange(6.0).reshape(2, 3).T)
    np.testing.assert_array_equal(arrays["b"], [0, 1, 2])


def test_arrays_are_memory_mapped_and_read_only(store: ArtifactStore) -> None:
    save(store)
    arrays = store.arrays("targets", "k1")
    assert isinstance(arrays["matrix"], np.memmap)
    for array in arrays.values():
        assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        arrays["matrix"][0, 0] = 1


def test_what_was_never_saved_is_not_found(store: ArtifactStore) -> None:
    assert store.find("targets", "none") is None
    with pytest.raises(ArtifactError, match=r"targets/none is not in .*run the study again"):
        store.arrays("targets", "none")


def test_an_unknown_file_of_an_artifact_is_named(store: ArtifactStore) -> None:
    store.save("profiles", "p", inputs={}, tables={"profiles": TABLE})
    for read in (
        lambda: store.table("profiles", "p", "users"),
        lambda: store.document("profiles", "p", "x"),
        lambda: store.arrays("profiles", "p"),
    ):
        with pytest.raises(ArtifactError, match=r"has no file '.*'; it has \['profiles.parquet'\]"):
            read()


def test_without_its_manifest_an_artifact_does_not_count(store: ArtifactStore) -> None:
    save(store)
    (folder(store) / MANIFEST).unlink()
    assert store.find("targets", "k1") is None
    save(store)
    assert store.find("targets", "k1") is not None


@pytest.mark.parametrize("name", ["arrays.safetensors", "users.parquet", "facts.json"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped", "longer"])
def test_a_damaged_file_is_found_out_and_mended_by_saving_again(store: ArtifactStore, name: str, harm: str) -> None:
    save(store)
    path = folder(store) / name
    data = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(
            {"truncated": data[:-1], "flipped": data, "longer": data + b"0"}[harm] if harm != "truncated" else data[: len(data) // 2]
        )
    assert store.find("targets", "k1") is None
    fresh = ArtifactStore(store.root)
    with pytest.raises(ArtifactError, match="damaged or half written"):
        fresh.arrays("targets", "k1") if "arrays" in name else (
            fresh.table("targets", "k1", "users"),
            fresh.document("targets", "k1", "facts"),
        )
    save(store)
    assert store.find("targets", "k1") is not None


@given(st.data())
def test_no_changed_bit_of_a_manifest_goes_unseen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    store.save("targets", "k1", inputs={"seed": 1}, documents={"facts": 1}, notes={"coverage": 0.5})
    path = folder(store) / MANIFEST
    raw = bytearray(path.read_bytes())
    place, bit = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 7))
    before = store.manifest("targets", "k1")
    raw[place] ^= 1 << bit
    path.write_bytes(raw)
    found = store.find("targets", "k1")
    assert found is None or found == before  # white space between the values may change


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b'{"kind": 1}', b"\xff\xfe", b'{"files": 3, "manifest_sha256": "x"}'])
def test_what_is_no_manifest_is_no_artifact(store: ArtifactStore, content: bytes) -> None:
    save(store)
    (folder(store) / MANIFEST).write_bytes(content)
    assert store.find("targets", "k1") is None
    with pytest.raises(ArtifactError, match=r"manifest of targets/k1 in .* is damaged"):
        store.manifest("targets", "k1")


def test_the_manifest_of_another_artifact_does_not_count(store: ArtifactStore) -> None:
    save(store, "k1")
    os.rename(folder(store, "k1"), folder(store, "k2"))
    assert store.find("targets", "k2") is None


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", "", ".hidden", "a\x00b", "a\n", "..", "ü", "x" * 200])
def test_a_name_that_would_be_a_path_is_refused(store: ArtifactStore, name: str) -> None:
    for attempt in (
        lambda: store.save(name, "k", inputs={}),
        lambda: store.save("kind", name, inputs={}),
        lambda: store.save("kind", "k", inputs={}, tables={name: TABLE}),
        lambda: store.save("kind", "k", inputs={}, documents={name: 1}),
        lambda: store.manifest("kind", name),
        lambda: store.manifest(name, "k"),
    ):
        with pytest.raises(ArtifactError, match="not a plain name"):
            attempt()
    assert not Path(store.root).exists()


def test_a_relative_root_means_the_same_folder_after_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = ArtifactStore("results/artifacts")
    save(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(pickle.dumps(store)).find("targets", "k1") is not None


def test_a_file_uri_and_a_path_are_one_store(tmp_path: Path) -> None:
    save(ArtifactStore(tmp_path / "a"))
    assert ArtifactStore(f"file://{tmp_path}/a").find("targets", "k1") is not None


@pytest.mark.parametrize("uri", ["nosuch://bucket/x", "http://host/x"])
def test_an_unknown_uri_is_an_error_that_names_it(uri: str) -> None:
    with pytest.raises(StorageError, match="is not a folder or a known URI"):
        FileStore(uri)


@pytest.mark.parametrize(
    "uri", ["s3://id:hunter2@bucket/x", "s3://bucket?secret_key=hunter2", "s3://bucket?region=a&session_token=hunter2"]
)
def test_a_secret_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY") as caught:
        FileStore(uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("s3://bucket", "s3://bucket/a/b"),
        ("s3://bucket/p/", "s3://bucket/p/a/b"),
        ("s3://bucket/p?endpoint_override=127.0.0.1:9000&scheme=http", "s3://bucket/p/a/b?endpoint_override=127.0.0.1:9000&scheme=http"),
        ("/data/results/", "/data/results/a/b"),
    ],
)
def test_a_folder_below_a_storage_keeps_the_options_of_its_uri(storage: str, expected: str) -> None:
    assert below(storage, "a", "b") == expected


def test_files_are_listed_sorted_without_partial_ones(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    for name in ("b/2.json", "b/1.json", "b/c/3.json", "a.json"):
        files.write_bytes(name, b"x")
    (tmp_path / "b" / ".4.json.1234.partial").write_bytes(b"x")
    assert files.list("b") == ["b/1.json", "b/2.json"]
    assert files.list("", recursive=True) == ["a.json", "b/1.json", "b/2.json", "b/c/3.json"]
    assert files.list("none") == []
    files.delete("b")
    files.delete("none")
    assert files.list("", recursive=True) == ["a.json"]
    assert not files.exists("b")
    assert files.read_bytes("b/1.json") is None


def test_a_name_below_a_file_is_not_there_and_cannot_be_written(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    files.write_bytes("a", b"x")
    assert files.read_bytes("a/b") is None
    with pytest.raises(StorageError):
        files.write_bytes("a/b", b"x")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; where none may be mounted, a limit of 64 KiB a file."""
    point = tmp_path / "disk"
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", point]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    if mounted:
        yield point
        subprocess.run(["umount", point], check=True)
        return
    old_limit, old_handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, old_limit[1]))
    yield point
    resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
    signal.signal(signal.SIGXFSZ, old_handler)


def test_a_full_disk_is_an_error_and_leaves_nothing_that_counts(small_disk: Path) -> None:
    store = ArtifactStore(small_disk)
    big = np.random.default_rng(0).random(32 * 1024)
    with pytest.raises(StorageError, match=r"no space left while writing|File too large"):
        store.save("targets", "k1", inputs={}, documents={"facts": 1}, arrays={"big": big})
    assert store.find("targets", "k1") is None
    assert [path.name for path in small_disk.rglob("*.partial")] == []
    store.save("targets", "k1", inputs={}, arrays={"small": big[:10]})
    np.testing.assert_array_equal(store.arrays("targets", "k1")["small"], big[:10])


def test_a_full_disk_does_not_harm_the_artifact_that_is_there(small_disk: Path) -> None:
    store = ArtifactStore(small_disk)
    store.save("targets", "k1", inputs={}, arrays={"a": np.arange(10)})
    with pytest.raises(StorageError):
        store.save("targets", "k1", inputs={}, arrays={"a": np.random.default_rng(0).random(32 * 1024)})
    np.testing.assert_array_equal(store.arrays("targets", "k1")["a"], np.arange(10))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "choose a `storage`"),
        (errno.EACCES, "may write to"),
        (errno.EIO, "check the storage"),
    ],
)
def test_each_failure_of_a_disk_says_what_to_do(code: int, words: str) -> None:
    text = str(storage_problem(OSError(code, os.strerror(code)), "/data/x"))
    assert "/data/x" in text
    assert words in text


READ_ONLY = """
import os, sys
from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.errors import StorageError
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)   # root may write anywhere
try:
    ArtifactStore(sys.argv[1]).save("targets", "k1", inputs={}, documents={"a": 1})
except StorageError as error:
    print(error)
"""


def test_a_read_only_folder_is_named() -> None:
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        locked = Path(parent) / "locked"
        locked.mkdir(mode=0o555)
        done = subprocess.run([sys.executable, "-c", READ_ONLY, locked], capture_output=True, text=True, check=True)
        assert str(locked) in done.stdout
        assert "cannot be written (Permission denied)" in done.stdout
        assert list(locked.iterdir()) == []


WRITER = """
import sys
import numpy as np
from llmkt_ray.artifacts import ArtifactStore
store, fill, keys = ArtifactStore(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for key in range(keys):
    sys.stdin.readline()
    store.save("profiles", f"k{key}", inputs={}, arrays={"a": np.full(20_000, fill)}, documents={"b": [fill] * 1000, "c": fill})
    print("done", flush=True)
"""


def start_writer(store: ArtifactStore, fill: int, keys: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, store.root, str(fill), str(keys)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)


def assert_one_writer_s_content(store: ArtifactStore, key: str) -> None:
    fill = store.document("profiles", key, "c")
    assert set(store.document("profiles", key, "b")) == {fill}
    assert set(store.arrays("profiles", key)["a"].tolist()) == {fill}


def test_two_processes_that_write_different_content_under_one_key_leave_one_whole_artifact(store: ArtifactStore) -> None:
    keys = 12
    writers = [start_writer(store, fill, keys) for fill in (1, 2)]
    for key in range(keys):
        for writer in writers:
            writer.stdin.write("go\n")
        for writer in writers:
            assert writer.stdout.readline() == "done\n", writer.stderr.read()
        assert_one_writer_s_content(store, f"k{key}")
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [("", 0), ("", 0)]


def test_a_writer_killed_at_any_moment_leaves_a_whole_artifact_or_none(store: ArtifactStore) -> None:
    for attempt in range(6):
        writer = start_writer(store, attempt, 1000)
        writer.stdin.write("go\n" * 1000)
        for _ in range(1 + 3 * attempt):
            writer.stdout.readline()
        writer.kill()
        writer.communicate()
        for key in Path(store.root, "profiles").iterdir():
            if store.find("profiles", key.name) is not None:
                assert_one_writer_s_content(store, key.name)
    store.save("profiles", "k0", inputs={}, documents={"c": 9})
    assert store.find("profiles", "k0") is not None


def test_a_reader_keeps_its_arrays_while_they_are_written_anew(store: ArtifactStore) -> None:
    store.save("profiles", "k1", inputs={}, arrays={"a": np.zeros(1000)})
    before = store.arrays("profiles", "k1")["a"]
    ArtifactStore(store.root).save("profiles", "k1", inputs={}, arrays={"a": np.ones(1000)})
    assert before.sum() == 0
    assert store.arrays("profiles", "k1")["a"].sum() == 1000


def test_the_manifest_is_written_last(store: ArtifactStore) -> None:
    """A folder as a crash leaves it, before the manifest: the files are there, the artifact is not."""
    save(store)
    manifest = json.loads((folder(store) / MANIFEST).read_bytes())
    times = {name: (folder(store) / name).stat().st_mtime_ns for name in manifest["files"]}
    assert (folder(store) / MANIFEST).stat().st_mtime_ns >= max(times.values())
