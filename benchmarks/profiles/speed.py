"""Tokens per second of the engines against the bare vLLM: the same prompts, model and settings, one after the other in one run.

    python -m benchmarks.profiles.speed [--users 96] [--hidden 512] [--layers 8]

Start-up is shown apart: it ends when an engine begins with its first prompts; Ray's own start belongs to it. Tokens are prompt and output
together. Every side gets one thread and runs in a process of its own. The model has random weights and is large enough that the
engine's work is most of the job.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.profiles.engines.vllm_common import engine_settings, environment, sampling
from llmkt_ray.profiles.engines.vllm_data import VllmDataBackend
from llmkt_ray.profiles.engines.vllm_sync import VllmSyncBackend
from llmkt_ray.profiles.prompts import Prompt, PromptBuilder, PromptTemplate
from llmkt_ray.profiles.tokenizer import ModelTokens
from llmkt_ray.study import ProfileConfig, TaskResources
from tests.films import film_split
from tests.llm.tiny_llama import build_tiny_llama

SIDES = {"bare": None, "vllm-sync": 0.95, "vllm": 0.9}
"""Side to the smallest share of the bare engine's tokens per second that is aimed at."""


def work(folder: Path, side: str) -> dict[str, Any]:
    """Runs one side in this process and returns its figures."""
    given = json.loads((folder / "settings.json").read_text())
    config = ProfileConfig(
        llm="vllm" if side == "bare" else side,
        model=str(folder / "llama"),
        prompt_budget=700,
        max_tokens=given["max_tokens"],
        block_size=given["block_size"],
        temperature=1.0,
        engine={"enforce_eager": True, "kv_cache_memory_bytes": 512 << 20, "max_model_len": 1024, "max_num_seqs": given["block_size"]},
    )
    data = film_split(folder / "films", ArtifactStore(folder / "artifacts"), n_users=given["users"])
    builder = PromptBuilder(PromptTemplate("movies"), ModelTokens(str(config.model)), config.prompt_budget)
    prompts = list(builder.build(data))
    return _bare(config, prompts) if side == "bare" else _ours(config, prompts)


def _bare(config: ProfileConfig, prompts: list[Prompt]) -> dict[str, Any]:
    os.environ.update(environment(TaskResources()))
    import vllm

    begun = time.monotonic()
    llm = vllm.LLM(model=str(config.model), seed=1, disable_log_stats=False, **engine_settings(config, TaskResources()))
    ready = time.monotonic()
    outputs = llm.chat([list(prompt.messages) for prompt in prompts], vllm.SamplingParams(**sampling(config)), use_tqdm=False)
    ended = time.monotonic()
    counters = {metric.name: metric.value for metric in llm.get_metrics() if metric.name.startswith("vllm:prefix_cache_")}
    tokens = sum(len(output.prompt_token_ids) + len(output.outputs[0].token_ids) for output in outputs)
    hits = counters["vllm:prefix_cache_hits"] / counters["vllm:prefix_cache_queries"]
    return {"start_s": ready - begun, "work_s": ended - ready, "tokens": tokens, "hit_rate": hits}


def _ours(config: ProfileConfig, prompts: list[Prompt]) -> dict[str, Any]:
    backend = (VllmSyncBackend if config.llm == "vllm-sync" else VllmDataBackend)(config, TaskResources())
    blocks = [prompts[start : start + config.block_size] for start in range(0, len(prompts), config.block_size)]
    begun, ready, tokens = time.monotonic(), float("inf"), 0
    for _, answers in backend.run(blocks, 1):
        assert not isinstance(answers, str), answers
        assert all(answer.error is None for answer in answers), answers
        # Some answer was the first that the engine began with, as long ago as it took.
        ready = min(ready, time.monotonic() - max(answer.latency_s or 0.0 for answer in answers))
        tokens += sum((answer.prompt_tokens or 0) + (answer.output_tokens or 0) for answer in answers)
    ended = time.monotonic()
    backend.close()
    return {"start_s": ready - begun, "work_s": ended - ready, "tokens": tokens}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--users", type=int, default=96)
    options.add_argument("--max-tokens", type=int, default=64)
    options.add_argument("--block-size", type=int, default=32)
    options.add_argument("--hidden", type=int, default=512)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmkt-speed-") as name:
        folder = Path(name)
        titles = [f"Film Number {n} ({1950 + n}); Drama, Comedy, Horror; rated {n % 5 + 1}" for n in range(60)]
        prompt = (files("llmkt_ray.profiles") / "templates" / "movies.j2").read_text("utf-8")
        build_tiny_llama(folder / "llama", [*titles, prompt] * 20, hidden=given.hidden, layers=given.layers)
        size = (folder / "llama" / "model.safetensors").stat().st_size / 4e6
        (folder / "settings.json").write_text(json.dumps(vars(given)))
        print(f"{given.users} prompts, a Llama of {size:.0f} million random weights (float32), one thread a side", flush=True)
        print(f"{'side':<10} {'start-up s':>11} {'work s':>8} {'tokens':>8} {'tokens/s':>9} {'of bare':>8}  target", flush=True)
        bare = None
        for side in given.sides:
            # In a process of its own: what one engine leaves in memory is not the next one's burden.
            child = [sys.executable, "-m", "benchmarks.profiles.speed_side", str(folder), side]
            environ = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
            with open(folder / f"{side}.log", "wb") as log:
                code = subprocess.run(child, env=environ, stdout=log, stderr=log, check=False).returncode
            if code:
                sys.exit(f"{side} failed:\n{(folder / f'{side}.log').read_text(errors='replace')[-3000:]}")
            figures = json.loads((folder / f"{side}.json").read_text())
            rate = figures["tokens"] / figures["work_s"]
            bare = bare or (rate if side == "bare" else None)
            ratio = f"{rate / bare:>8.2f}" if bare else f"{'':>8}"
            target = f">= {SIDES[side]}" if SIDES[side] else ""
            print(
                f"{side:<10} {figures['start_s']:>11.1f} {figures['work_s']:>8.1f} {figures['tokens']:>8} {rate:>9.0f} {ratio}  {target}",
                flush=True,
            )
            if "hit_rate" in figures:
                print(f"{'':<10} prefix cache: {figures['hit_rate']:.0%} of the prompt tokens were hits", flush=True)


if __name__ == "__main__":
    main()
