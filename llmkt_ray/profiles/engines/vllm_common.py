"""What both ways of running vLLM share: where the weights are, the engine's settings, the environment of its processes."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmkt_ray.digests import digest_of
from llmkt_ray.errors import ProfileError, ResourceError
from llmkt_ray.profiles.structured import schema
from llmkt_ray.study import ProfileConfig, TaskResources

_CPU_KV_CACHE_BYTES = 1 << 30
"""On a CPU vLLM would take 92 % of the machine's memory for its cache, and die where that is not free."""

_SMALL_FILES = (".json", ".txt", ".model", ".jinja")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
"""What vLLM can load from the folder itself."""
_NOT_LOADED = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
"""What a trainer leaves beside its weights; vLLM passes over the same."""

_MEMORY = ("gpu_memory_utilization", "kv_cache_memory_bytes")
"""Settings that say how much memory there is: a run that goes on with less must find the texts that it has paid for."""


def engine_settings(config: ProfileConfig, resources: TaskResources) -> dict[str, Any]:
    """Returns the keyword arguments of a vLLM engine: the study's, with prefix caching on and a cache that fits a CPU."""
    settings: dict[str, Any] = {"enable_prefix_caching": True, **config.engine}
    settings.setdefault("max_model_len", config.prompt_budget + config.max_tokens)
    if config.structured:
        # Space between the parts is free in JSON, and a model may fill its whole answer with it. Only this backend can forbid it.
        settings["structured_outputs_config"] = {"backend": "xgrammar", "disable_any_whitespace": True}
    if not resources.gpus:
        settings.setdefault("kv_cache_memory_bytes", _CPU_KV_CACHE_BYTES)
    return settings


def check_length(config: ProfileConfig) -> None:
    """Checks that the engine's context holds the longest prompt and its answer: vLLM would refuse every prompt that is longer.

    Raises:
        ProfileError: `engine.max_model_len` is less than that, or no whole number.
    """
    given, least = config.engine.get("max_model_len"), config.prompt_budget + config.max_tokens
    if given is not None and (type(given) is not int or given < least):
        raise ProfileError(
            f"engine.max_model_len of {config.label!r} is {given!r}, but must be a whole number of at least {least:,}: prompt_budget "
            f"{config.prompt_budget:,} and max_tokens {config.max_tokens:,}; leave it out (it is then {least:,}), or lower prompt_budget"
        )


def what_to_check(config: ProfileConfig) -> str:
    """Returns what may be wrong where an engine does not start or answers nothing."""
    return (
        "check the model's folder or name, its longest context (max_model_len, which is prompt_budget + max_tokens or more: here "
        f"{config.prompt_budget + config.max_tokens:,}; lower prompt_budget to need less), and the memory that `engine` asks for "
        "(gpu_memory_utilization, kv_cache_memory_bytes)"
    )


def ranks(config: ProfileConfig) -> int:
    """Returns how many workers one engine is made of, each of which asks for `resources.profiles`: tensor times pipeline parallelism."""
    return int(config.engine.get("tensor_parallel_size", 1)) * int(config.engine.get("pipeline_parallel_size", 1))


def environment(resources: TaskResources) -> dict[str, str]:
    """Returns the environment variables of an engine's processes; nothing secret, for Ray shows them."""
    common = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if resources.gpus:
        return common
    return common | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, int(resources.cpus)))}


def require_vllm() -> None:
    """Checks that vLLM is installed.

    Raises:
        ResourceError: it is not; it says which of the two builds to install.
    """
    if find_spec("vllm") is None:
        raise ResourceError(
            "vLLM is not installed in this environment; on a GPU machine: pip install 'llmkt_ray[vllm]'; on a CPU: see docs/profiles.md "
            "(an environment of its own); or use llm: openai with the base_url of a `vllm serve`"
        )


def identity_of(config: ProfileConfig) -> dict[str, Any]:
    """Returns model and engine settings that can change a text; the same for both ways of running vLLM.

    Raises:
        ProfileError: see `model_identity`.
    """
    settings = {name: value for name, value in config.engine.items() if name not in _MEMORY}
    return {"backend": "vllm", **model_identity(config), "settings": settings}


def model_identity(config: ProfileConfig) -> dict[str, Any]:
    """Returns what identifies the model: a hub name and revision, or a digest of a folder's files, weights included, wherever it lies.

    Raises:
        ProfileError: a path that is not the folder of a model.
    """
    model = str(config.model)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise ProfileError(f"model folder {model!r} does not exist; give the folder of a model in Hugging Face format, or a hub name")
        return {"model": model, "revision": config.revision}
    if not (folder / "config.json").is_file():
        raise ProfileError(f"{model!r} holds no config.json, so it is not a model in Hugging Face format")
    small = (path for path in folder.rglob("*") if path.suffix in _SMALL_FILES)
    # The whole of them: a merged adapter leaves names, sizes and the first tensors as they are.
    weights = (path for path in folder.glob("*") if path.suffix in _WEIGHTS and path.name not in _NOT_LOADED)
    return {"digest": digest_of(folder, sorted(path for path in (*small, *weights) if path.is_file()))}


def sampling(config: ProfileConfig) -> dict[str, Any]:
    """Returns vLLM's sampling settings. No seed a row: with chunked prefill it kills the CPU engine; the engine has one."""
    settings: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_tokens}
    if config.top_p is not None:
        settings["top_p"] = config.top_p
    # The schema as a string: in Ray Data's tables a dictionary would get the fields of all its rows.
    return settings | ({"structured_outputs": {"json": json.dumps(schema(config.structured))}} if config.structured else {})


def failure(error: Exception) -> str:
    """Returns the last line of an error that Ray carried over, with its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
