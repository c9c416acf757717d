"""Peak memory of the driver from 1,000 to 100,000 users, with a stub in place of the engine.

    python benchmarks/profiles/memory.py [--users 1000 10000 100000]

Each size runs in a process of its own; what is measured is what building prompts, part files and the final table cost.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.split import prepare
from llmkt_ray.profiles.engines.backend import Answer, Outcome
from llmkt_ray.profiles.engines.base import Job
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.parts import Parts
from llmkt_ray.profiles.prompts import EstimatedTokens, Prompt
from llmkt_ray.study import DatasetConfig, ProfileConfig


class Stub:
    """Answers at once, with a text as long as a profile."""

    def identity(self) -> dict[str, Any]:
        return {"backend": "stub"}

    def run(self, blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        for number, block in enumerate(blocks):
            yield number, [Answer(f"This viewer {prompt.hash} " + "likes slow films. " * 30, "stop", 500, 120) for prompt in block]

    def close(self) -> None:
        pass


def measure(users: int) -> None:
    """Prints one line: users, megabytes before and at the peak, seconds."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        user, item = np.repeat(np.arange(users), 30), rng.integers(0, 3000, users * 30)
        pairs = np.unique(user * 3000 + item)
        user, item = pairs // 3000, pairs % 3000
        table = {
            "user_id": [f"u{u}" for u in user],
            "item_id": [f"i{i}" for i in item],
            "rating": rng.integers(1, 6, len(pairs)).astype(float),
        }
        pq.write_table(pa.table(table), folder / "interactions.parquet")
        titles = {"item_id": [f"i{i}" for i in range(3000)], "title": [f"A Film of Number {i}" for i in range(3000)]}
        pq.write_table(pa.table(titles), folder / "items.parquet")
        del table
        store = ArtifactStore(folder / "artifacts")
        data = prepare(DatasetConfig(name="stub", path=name), study_seed=1, store=store)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started = time.monotonic()
        config = ProfileConfig(llm="openai", model="stub", block_size=256)
        LlmEngine(config, Stub(), EstimatedTokens).write(data, Job(1, lambda done, total: None, Parts(store, "k")))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{users:>8,} users: {before:8.0f} MB before, {peak:8.0f} MB at the peak, {time.monotonic() - started:7.1f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    for count in parser.parse_args().users:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(count,))
        process.start()
        process.join()
