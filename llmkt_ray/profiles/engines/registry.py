"""From the `llm` of a study to the engine that writes."""

from collections.abc import Callable

from llmkt_ray.errors import ProfileError, unknown_name
from llmkt_ray.profiles.engines.base import Engine
from llmkt_ray.profiles.engines.file import FileEngine
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.engines.template import TemplateEngine
from llmkt_ray.profiles.prompts import EstimatedTokens
from llmkt_ray.profiles.tokenizer import ModelTokens
from llmkt_ray.study import ProfileConfig, TaskResources


def _template(config: ProfileConfig, resources: TaskResources) -> Engine:
    return TemplateEngine(config.full_history, config.demographics)


def _file(config: ProfileConfig, resources: TaskResources) -> Engine:
    return FileEngine(config.path or "", config.declares_split)


def _openai(config: ProfileConfig, resources: TaskResources) -> Engine:
    # Imported here and below: a study must not load the clients of engines it does not use.
    from llmkt_ray.profiles.engines.openai import OpenAIBackend

    return LlmEngine(config, OpenAIBackend(config), EstimatedTokens)


def _vllm(config: ProfileConfig, resources: TaskResources) -> Engine:
    from llmkt_ray.profiles.engines.vllm_data import VllmDataBackend

    return LlmEngine(config, VllmDataBackend(config, resources), lambda: ModelTokens(str(config.model), config.revision))


def _vllm_sync(config: ProfileConfig, resources: TaskResources) -> Engine:
    from llmkt_ray.profiles.engines.vllm_sync import VllmSyncBackend

    return LlmEngine(config, VllmSyncBackend(config, resources), lambda: ModelTokens(str(config.model), config.revision))


ENGINES: dict[str, Callable[[ProfileConfig, TaskResources], Engine]] = {
    "template": _template,
    "file": _file,
    "openai": _openai,
    "vllm": _vllm,
    "vllm-sync": _vllm_sync,
}


def engine_of(config: ProfileConfig, resources: TaskResources = TaskResources()) -> Engine:  # noqa: B008 - frozen
    """Returns the engine of one entry under `profiles`.

    Args:
        config: the entry.
        resources: what one engine actor asks of Ray.

    Raises:
        ProfileError: there is no such engine, or it cannot work as configured.
    """
    if config.llm not in ENGINES:
        raise ProfileError(unknown_name("llm", config.llm, ENGINES))
    return ENGINES[config.llm](config, resources)
