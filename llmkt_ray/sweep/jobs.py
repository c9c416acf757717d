"""A study as a job on a Ray cluster: submitted, attached to, stopped, and its results brought home.

A submission id is used once in a cluster's life, so it is the study's key and an attempt; an attempt after an ended one goes
on where that stopped, because the ledger says what is done. Credentials are those of the environment: RAY_AUTH_MODE and
RAY_AUTH_TOKEN, on both sides.
"""

import base64
import binascii
import gzip
import io
import logging
import os
import re
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobStatus, JobSubmissionClient

import llmkt_ray
from llmkt_ray.artifacts import FileStore, below, storage_problem
from llmkt_ray.errors import ResourceError, StorageError, StudyError, token_refused
from llmkt_ray.results.folder import locked, owner_problem, study_folder
from llmkt_ray.results.transport import copy_results, result_files
from llmkt_ray.study import ProfileConfig, StudyConfig
from llmkt_ray.study_file import load_study
from llmkt_ray.sweep.search import is_relative_file

HOME = "LLMKT_HOME"
POLL_S = 1.0
NEW_CLUSTER_TRIES = 60
_BEGIN, _END = "llmkt-results-begin", "llmkt-results-end"


@dataclass(frozen=True)
class Job:
    """One attempt at a study: its submission id and Ray's status of it."""

    id: str
    status: str

    @property
    def ended(self) -> bool:
        """Whether it is over, well or not."""
        return bool(JobStatus(self.status).is_terminal())


class Jobs:
    """The jobs of one study on one cluster.

    Args:
        file: the study file.
        address: of the cluster's dashboard, `http://host:8265`.

    Raises:
        StudyError: the file has errors.
        ResourceError: the cluster cannot be reached, or refuses the token.
    """

    def __init__(self, file: Path, address: str) -> None:
        self.file, self.study = file, load_study(file)
        logging.getLogger("ray").setLevel(logging.WARNING)  # its remarks on packaging are not about the study
        with _explained(address):
            self._client = JobSubmissionClient(address)
        self.address = address

    def attempts(self, *, smoke: bool = False) -> list[Job]:
        """Returns the study's jobs, or those of its smoke runs, first attempt first."""
        pattern = re.compile(re.escape(self._name(smoke)) + r"(\d+)")
        with _explained(self.address):
            found = [(pattern.fullmatch(job.submission_id or ""), job) for job in self._client.list_jobs()]
        numbered = sorted((int(match[1]), job) for match, job in found if match)
        return [Job(str(job.submission_id), str(job.status.value)) for _, job in numbered]

    def submit(self, *options: str) -> tuple[Job, bool]:
        """Starts the study's next attempt, unless one is running: then that one is returned. Smoke runs are counted apart.

        Args:
            options: of `llmkt run`, for example "--smoke".

        Returns:
            The job, and whether it is new.

        Raises:
            StudyError: the study names files or code of this machine, which a cluster would not find.
            ResourceError: the cluster refuses.
        """
        smoke = "--smoke" in options
        before = self.attempts(smoke=smoke)
        if before and not before[-1].ended:
            return before[-1], False
        _refuse_what_stays_here(self.study, self.file)
        last = int(before[-1].id.rpartition("-")[2]) if before else 0  # a cluster may have dropped its oldest jobs: not their number
        name = f"{self._name(smoke)}{last + 1}"
        self._start(name, f"python -m sweeps.run study.yaml {' '.join(options)}".strip())
        return Job(name, JobStatus.PENDING.value), True

    def stop(self) -> Job | None:
        """Stops the running attempt, or where there is none the running smoke run, and returns it; None where none runs.

        Finished trials stay.
        """
        running = [job for job in (*self.attempts(smoke=True), *self.attempts()) if not job.ended]
        if not running:
            return None
        with _explained(self.address):
            self._client.stop_job(running[-1].id)
        return running[-1]

    def follow(self, job: Job, show: Callable[[str], None]) -> Job:
        """Shows a job's log as it grows, and returns the job when it has ended."""
        shown = 0
        while True:
            now = self.status(job.id)
            with _explained(self.address):
                log = self._client.get_job_logs(job.id)
            if len(log) > shown:
                show(log[shown:])
                shown = len(log)
            if now.ended:
                return now
            time.sleep(POLL_S)

    def status(self, job_id: str) -> Job:
        """Returns a job as it stands."""
        with _explained(self.address):
            return Job(job_id, str(self._client.get_job_status(job_id).value))

    def last_words(self, job: Job) -> str:
        """Returns the last line of a job's log: while a study runs, its stage, trials done and time left."""
        with _explained(self.address):
            lines = [line.strip() for line in self._client.get_job_logs(job.id).splitlines() if line.strip()]
        return lines[-1] if lines else "nothing said yet"

    def fetch(self, to: Path) -> Path:
        """Brings the results and the report here and returns their folder, `<to>/<study name>`.

        An object store is read directly; results on the cluster's disk come packed through the job's log. Files of an earlier fetch that
        are no longer there stay: a row counts once.

        Raises:
            StorageError: there are no results, they arrived damaged, or the folder is another study's or a study is being run in it.
        """
        _refuse_other_owner(self.study, to)
        if "://" in self.study.storage:
            with _arriving(self.study, to) as target:
                copy_results(FileStore(study_folder(self.study)), FileStore(target))
            return target
        name = f"{self.study.name}-{self.study.key}-fetch-{int(time.time())}"
        self._start(name, "python -m llmkt_ray.sweep.jobs study.yaml")
        while not (ended := self.status(name)).ended:  # its log is the results: it is read once, at the end
            time.sleep(POLL_S)
        with _explained(self.address):
            text = self._client.get_job_logs(name)
        if ended.status != JobStatus.SUCCEEDED.value or _BEGIN not in text:
            raise StorageError(f"the cluster has no results of {self.study.name!r}: {text.strip()[-500:] or ended.status}")
        with _arriving(self.study, to) as target:
            unpack(text.split(_BEGIN, 1)[1].split(_END, 1)[0], target)
        return target

    def _name(self, smoke: bool) -> str:
        """Returns what the submission ids of an attempt begin with: a smoke run is another study, in a folder of its own."""
        return f"{self.study.name}-{self.study.key}-{'smoke-' if smoke else ''}"

    def _start(self, name: str, command: str) -> None:
        with tempfile.TemporaryDirectory(prefix="llmkt-job-") as folder, _explained(self.address):
            _package(Path(folder), self.study, self.file)
            for attempt in range(NEW_CLUSTER_TRIES):
                try:
                    self._client.submit_job(submission_id=name, entrypoint=command, runtime_env={"working_dir": folder})
                    return
                except RuntimeError as error:  # a head that has just started has no agent for jobs yet
                    if "No available agent" not in str(error) or attempt == NEW_CLUSTER_TRIES - 1:
                        raise
                    time.sleep(POLL_S)


@contextmanager
def _arriving(study: StudyConfig, to: Path) -> Iterator[Path]:
    """Gives the folder `<to>/<study name>`, which is the study's or nobody's, and in which nobody runs a study meanwhile.

    Raises:
        StorageError: it is another study's, or a study is being run in it.
    """
    target = to / study.name
    with locked(target):
        _refuse_other_owner(study, to)
        yield target


def _refuse_other_owner(study: StudyConfig, to: Path) -> None:
    problem = owner_problem(study.model_copy(update={"storage": str(to)}))
    if problem:
        raise StorageError(f"{problem}; or fetch into another folder (--to)")


def stored_for_job(study: StudyConfig) -> StudyConfig:
    """Returns the study as a job runs it: a relative `storage` lies below LLMKT_HOME (a folder or URI), where it outlives the job.

    Raises:
        StudyError: LLMKT_HOME is an object store, and a search of this study keeps its journal in its storage.
    """
    if "://" in study.storage or Path(study.storage).is_absolute():
        return study
    home = os.environ.get(HOME) or str(Path.home() / "llmkt")
    moved = study.model_copy(update={"storage": below(home, study.storage)})
    if moved.journal_problem:
        raise StudyError([f"{moved.journal_problem} ({HOME} is {home!r})"], f"study {study.name!r}")
    return moved


def pack(folder: str) -> str:
    """Returns a results folder, without its checkpoints, as base64 of a compressed tar."""
    files, sink = FileStore(folder), io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name in result_files(files):
            data = files.read_bytes(name)
            if data is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return base64.b64encode(sink.getvalue()).decode()


def unpack(text: str, target: Path) -> None:
    """Writes a packed results folder.

    Raises:
        StorageError: it arrived damaged, or names a file outside the folder.
    """
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            target.mkdir(parents=True, exist_ok=True)
            archive.extractall(target, filter="data")
    except (binascii.Error, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StorageError(f"the results arrived damaged ({error}); run `llmkt fetch` again") from error
    except OSError as error:  # the disk here, full or not ours to write
        raise storage_problem(error, str(target)) from error


def _package(folder: Path, study: StudyConfig, study_file: Path) -> None:
    """Fills a job's working directory: the study file with its own prompts, and this version of the code."""
    for prompt in filter(_is_relative, (texts.prompt for texts in _texts_of(study))):
        if Path(prompt).is_file():  # a job that fetches needs none
            (folder / prompt).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(prompt, folder / prompt)
    package = Path(llmkt_ray.__file__).parent
    shutil.copytree(package, folder / "llmkt_ray", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (folder / "sweeps").mkdir(exist_ok=True)
    for name in ("__init__.py", "run.py"):
        shutil.copy(package.parent / "sweeps" / name, folder / "sweeps" / name)
    shutil.copy(study_file, folder / "study.yaml")


def _texts_of(study: StudyConfig) -> list[ProfileConfig]:
    """Returns the choices of who writes texts: of users, and of items for KAR."""
    return [*study.profiles, study.kar.items]


def _is_relative(path: str | None) -> TypeGuard[str]:
    return path is not None and "://" not in path and not Path(path).is_absolute()


def _refuse_what_stays_here(study: StudyConfig, file: Path) -> None:
    texts = _texts_of(study)
    data = [("dataset", d.name, d.path) for d in study.datasets] + [("profiles", entry.label, entry.path) for entry in texts]
    weights = [("profiles", entry.label, entry.model) for entry in texts] + [("embedding", e.label, e.encoder) for e in study.embedding]
    named = [*data, *((kind, name, path) for kind, name, path in weights if path is not None and Path(path).expanduser().is_dir())]
    problems = [
        f"{kind} {name!r} has the relative path {path!r}, which the cluster would not find; give an absolute path that every node sees"
        for kind, name, path in named
        if _is_relative(path)
    ]
    for entry in texts:
        if _is_relative(entry.prompt) and (".." in Path(entry.prompt).parts or not Path(entry.prompt).is_file()):
            problems.append(
                f"profiles {entry.label!r} has the prompt {entry.prompt!r}, and a job carries prompts that are below this folder alone"
            )
    if is_relative_file(study.search.storage):
        problems.append(
            f"search.storage {study.search.storage!r} would lie in the job's working directory, which is thrown away; give the URL of a "
            "database server, or an absolute path that the cluster keeps (sqlite:////folder/x.db)"
        )
    problems += [
        f"model {model.name!r} is a class of your own ({model.class_path}), which this job would not carry; from its folder run: "
        f"ray job submit --working-dir . -- python -m sweeps.run {file} --allow-code"
        for model in study.models
        if model.class_path is not None
    ]
    if problems:
        raise StudyError(problems, str(file))


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turns what the job client raises into one sentence with the remedy."""
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        text = str(error)
        if isinstance(error, AuthenticationError) or (not isinstance(error, ConnectionError) and _refuses_token(text)):
            raise token_refused(address, text) from error
        raise ResourceError(
            f"the cluster at {address} cannot be used: {text.strip()[:400]}; is it running, and is --address its dashboard?"
        ) from error


def _refuses_token(said: str) -> bool:
    """Says whether the answer's status is that of a refused token; a port, a study's name or its key may hold these digits too."""
    return re.search(r"status code 40[13]\b", said) is not None


if __name__ == "__main__":  # the job that `fetch` starts
    import sys

    print(_BEGIN)
    print(pack(study_folder(stored_for_job(load_study(sys.argv[1])))))
    print(_END)
