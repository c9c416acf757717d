"""The exact prompts of a few users, before any model is asked."""

from itertools import groupby, islice

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.llm import LlmEngine
from llmkt_ray.profiles.engines.registry import engine_of
from llmkt_ray.profiles.prompts import Prompt
from llmkt_ray.study import ProfileConfig


def preview(config: ProfileConfig, data: PreparedData, users: int = 3) -> list[Prompt]:
    """Returns the prompts of the first `users` users with a history, all parts of a history that is read in chunks.

    The prompts that merge the texts about parts hold those texts, so they are not known before a model is asked.

    Raises:
        ProfileError: this way of writing profiles asks nobody, or the prompts cannot be built.
    """
    engine = engine_of(config)
    if not isinstance(engine, LlmEngine):
        raise ProfileError(f"profiles of {config.label!r} have no prompts: no language model is asked (llm {config.llm!r})")
    by_user = groupby(engine.builder(data).build(data), key=lambda prompt: prompt.user_id)
    return [prompt for _, prompts in islice(by_user, users) for prompt in prompts]
