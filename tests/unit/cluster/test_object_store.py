"""Artifacts and files on an object store: moto's S3 server on loopback, through the same URI a study would name."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from moto import server as moto_server

from llmkt_ray.artifacts import MANIFEST, ArtifactStore, FileStore, below
from llmkt_ray.errors import ArtifactError, StorageError

TABLE = pa.table({"user_id": ["u1", "u2"], "profile": ["likes jazz", "likes folk"]})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield ":".join(map(str, server.get_host_and_port()))
    server.stop()


@pytest.fixture
def storage(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """What a study writes under `storage:`; the credentials come from the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = tmp_path.name.replace("_", "-").lower()
    admin = pafs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True)
    admin.create_dir(bucket)
    return f"s3://{bucket}/team/results?endpoint_override={endpoint}&scheme=http&region=us-east-1"


def save(store: ArtifactStore, fill: int = 1) -> None:
    store.save(
        "targets",
        "k1",
        inputs={"seed": 1},
        arrays={"matrix": np.full((4, 3), fill, np.float32)},
        tables={"users": TABLE},
        documents={"facts": [fill]},
    )


def test_an_artifact_comes_back_and_its_arrays_are_mapped_from_the_cache(storage: str, tmp_path: Path) -> None:
    store = ArtifactStore(below(storage, "artifacts"), cache=tmp_path / "cache")
    assert store.find("targets", "k1") is None
    save(store)
    assert store.find("targets", "k1").inputs == {"seed": 1}
    assert store.table("targets", "k1", "users").equals(TABLE)
    assert store.document("targets", "k1", "facts") == [1]
    matrix = store.arrays("targets", "k1")["matrix"]
    assert isinstance(matrix, np.memmap)
    assert not matrix.flags.writeable
    np.testing.assert_array_equal(matrix, np.ones((4, 3)))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_damaged_cache_file_is_fetched_again(storage: str, tmp_path: Path) -> None:
    save(ArtifactStore(storage, cache=tmp_path / "cache"))
    ArtifactStore(storage, cache=tmp_path / "cache").arrays("targets", "k1")
    (copy,) = (tmp_path / "cache").iterdir()
    copy.write_bytes(copy.read_bytes()[:-1])
    np.testing.assert_array_equal(ArtifactStore(storage, cache=tmp_path / "cache").arrays("targets", "k1")["matrix"], np.ones((4, 3)))


def test_a_new_content_is_not_read_from_the_old_cache(storage: str, tmp_path: Path) -> None:
    store = ArtifactStore(storage, cache=tmp_path / "cache")
    for fill in (1, 2):
        save(store, fill)
        assert store.arrays("targets", "k1")["matrix"].max() == fill


def test_without_a_cache_arrays_say_what_is_missing_and_without_arrays_too(storage: str, tmp_path: Path) -> None:
    save(ArtifactStore(storage))
    with pytest.raises(ArtifactError, match="is remote: a local cache folder is needed"):
        ArtifactStore(storage).arrays("targets", "k1")
    store = ArtifactStore(storage, cache=tmp_path / "cache")
    store.save("profiles", "p", inputs={}, documents={"a": 1})
    with pytest.raises(ArtifactError, match=r"has no file 'arrays.safetensors'"):
        store.arrays("profiles", "p")


@pytest.mark.parametrize("name", [MANIFEST, "users.parquet", "arrays.safetensors"])
def test_a_half_written_object_does_not_count(storage: str, name: str) -> None:
    store = ArtifactStore(storage)
    save(store)
    data = store.files.read_bytes(f"targets/k1/{name}")
    store.files.write_bytes(f"targets/k1/{name}", data[: len(data) // 2])
    assert store.find("targets", "k1") is None
    save(store)
    assert store.find("targets", "k1") is not None


def test_files_are_listed_and_deleted_as_on_a_disk(storage: str, tmp_path: Path) -> None:
    listings = []
    for files in (FileStore(below(storage, "study")), FileStore(tmp_path / "study")):
        for name in ("ledger/2.parquet", "ledger/1.parquet", "ledger/old/0.parquet", "card.json"):
            files.write_bytes(name, b"x")
        facts = [files.list("ledger"), files.list("", recursive=True), files.list("none"), files.exists("ledger"), files.exists("none")]
        files.delete("ledger")
        files.delete("card.json")
        files.delete("none")
        listings.append([*facts, files.list("", recursive=True), files.read_bytes("card.json")])
    assert listings[0] == listings[1]
    assert listings[0][:2] == [
        ["ledger/1.parquet", "ledger/2.parquet"],
        ["card.json", "ledger/1.parquet", "ledger/2.parquet", "ledger/old/0.parquet"],
    ]


def test_two_studies_of_one_storage_do_not_see_each_other_s_files(storage: str) -> None:
    FileStore(below(storage, "one")).write_bytes("card.json", b"1")
    assert FileStore(below(storage, "other")).list("", recursive=True) == []
    assert FileStore(storage).list("", recursive=True) == ["one/card.json"]


def test_a_bucket_that_is_not_there_is_an_error_to_act_on(storage: str) -> None:
    elsewhere = storage.replace("s3://", "s3://no-such-bucket-", 1)
    with pytest.raises(StorageError, match="check the storage, then run again"):
        FileStore(elsewhere).write_bytes("a", b"x")


def test_a_server_that_does_not_answer_is_an_error_to_act_on(storage: str, endpoint: str) -> None:
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        files = FileStore(storage.replace(endpoint, f"127.0.0.1:{unused.getsockname()[1]}"))
        with pytest.raises(StorageError, match=r"reading .*card.json failed: .*check the storage"):
            files.read_bytes("card.json")


class Refusing(BaseHTTPRequestHandler):
    """An object store that denies every request."""

    def deny(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = deny

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refused(storage: str, endpoint: str) -> Iterator[FileStore]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield FileStore(storage.replace(endpoint, f"127.0.0.1:{server.server_port}"))
        server.shutdown()


def test_denied_is_not_the_same_as_absent(refused: FileStore) -> None:
    for operation in (refused.read_bytes, refused.exists, refused.list, refused.delete, lambda name: refused.write_bytes(name, b"x")):
        with pytest.raises(StorageError, match="check the storage, then run again"):
            operation("folder/a")


def test_another_process_reads_what_was_written(storage: str) -> None:
    save(ArtifactStore(storage))
    code = "import sys; from llmkt_ray.artifacts import ArtifactStore; print(ArtifactStore(sys.argv[1]).document('targets', 'k1', 'facts'))"
    done = subprocess.run([sys.executable, "-c", code, storage], capture_output=True, text=True, check=True)
    assert done.stdout == "[1]\n"
