"""From the `llm` of a study to the engine that writes."""

from collections.abc import Callable

from llmkt_ray.errors import ProfileError, unknown_name
from llmkt_ray.profiles.engines.base import Engine
from llmkt_ray.profiles.engines.file import FileEngine
from llmkt_ray.profiles.engines.template import TemplateEngine
from llmkt_ray.study import ProfileConfig

ENGINES: dict[str, Callable[[ProfileConfig], Engine]] = {
    "template": lambda config: TemplateEngine(config.full_history),
    "file": lambda config: FileEngine(config.path or "", config.declares_split),
}


def engine_of(config: ProfileConfig) -> Engine:
    """Returns the engine of one entry under `profiles`.

    Raises:
        ProfileError: there is no such engine, or it cannot work as configured.
    """
    if config.llm not in ENGINES:
        raise ProfileError(unknown_name("llm", config.llm, ENGINES))
    return ENGINES[config.llm](config)
