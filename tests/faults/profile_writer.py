"""Writes profiles with a real engine in a process of its own, so that tests and the drill can kill it and its engines.

python -m tests.faults.profile_writer FOLDER vllm-sync|vllm
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.profiles.generate import generate, profiles_key
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.study import ProfileConfig
from tests.films import film_split
from tests.llm.tiny_llama import build_tiny_llama

USERS = 144
"""So many that writing goes on for seconds after its first rows, on a fast machine too."""
SETTINGS = {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "max_model_len": 1024, "max_num_seqs": 4}
_ENGINES = ("ray::Engine", "ray::_MapWorker", "ray::MapWorker", "VLLM::")


class Writing:
    """The profiles of `USERS` users by a tiny Llama, below one folder."""

    def __init__(self, folder: Path, llm: str) -> None:
        self.folder, self.llm, model = folder, llm, folder / "llama"
        if not model.exists():
            titles = [f"Film Number {n} ({1950 + n}); Drama, Comedy, Horror; rated {n % 5 + 1}" for n in range(60)]
            build_tiny_llama(model, titles * 20)
        self.store = ArtifactStore(folder / "artifacts")
        self.data = film_split(folder / "films", self.store, n_users=USERS)
        self.config = ProfileConfig(
            llm=llm, model=str(model), prompt_budget=700, max_tokens=120, block_size=4, engine=SETTINGS, temperature=1.0, attempts=3
        )
        self.key = profiles_key(self.config, self.data.key, 1)

    def write(self) -> Profiles:
        """Writes what is missing, in this process."""
        return generate(self.config, self.data, self.store, study_seed=1)

    def start(self) -> subprocess.Popen[bytes]:
        """Starts a process that writes what is missing."""
        command = [sys.executable, "-m", "tests.faults.profile_writer", str(self.folder), self.llm]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1"}
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def rows_on_disk(self) -> int:
        """Returns how many users have a text in a part file or in the finished artifact."""
        if self.store.find("profiles", self.key):
            return USERS
        return sum(row.profile is not None for row in Parts(self.store, self.key).finished().values())

    def problems(self) -> list[str]:
        """Returns what is wrong with the finished profiles: users without a row, with several, or without a text."""
        table = Profiles.load(self.store, self.key).table
        counts = Counter(table.column("user_id").to_pylist())
        expected = {str(user) for user in self.data.user_tokens}
        wrong = [f"{user}: {counts[user]} rows" for user in expected if counts[user] != 1]
        return wrong + [f"{row['user_id']}: {row['error']}" for row in table.to_pylist() if row["profile"] is None]


def family(pid: int) -> list[psutil.Process]:
    """Returns every process below one, itself not."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def engines(processes: list[psutil.Process], names: tuple[str, ...] = _ENGINES) -> list[psutil.Process]:
    """Returns those of the processes that hold an engine: Ray's actors, and vLLM's own."""
    found = []
    for process in processes:
        try:
            if any(name in " ".join(process.cmdline()) for name in names):
                found.append(process)
        except psutil.Error:  # It ended while we looked.
            continue
    return found


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 500) -> None:
    """Returns when the condition holds.

    Raises:
        AssertionError: the process ended before, or the time did.
    """
    until = time.monotonic() + seconds
    while not condition():
        said = log.read_text(errors="replace")[-3000:]
        assert process.poll() is None, f"the writer ended too early: {said}"
        assert time.monotonic() < until, f"the moment to strike never came: {said}"
        time.sleep(0.1)


if __name__ == "__main__":
    print(len(Writing(Path(sys.argv[1]), sys.argv[2]).write().table))
