"""The exact prompts of a few users, before any model is asked."""

from itertools import islice

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.engines.registry import engine_of
from llmkt_ray.profiles.prompts import Prompt
from llmkt_ray.study import ProfileConfig


def preview(config: ProfileConfig, data: PreparedData, users: int = 3) -> list[Prompt]:
    """Returns the prompts of the first `users` users with a history.

    Raises:
        ProfileError: this way of writing profiles asks nobody, or the prompts cannot be built.
    """
    engine = engine_of(config)
    if not isinstance(engine, LlmEngine):
        raise ProfileError(f"profiles of {config.label!r} have no prompts: no language model is asked (llm {config.llm!r})")
    return list(islice(engine.builder(data).build(data), users))
