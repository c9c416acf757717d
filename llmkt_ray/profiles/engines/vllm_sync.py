"""vLLM inside Ray actors that own a synchronous engine each: light, quick to start, for small jobs and tests.

The engine runs in the actor's own process, so that an actor that dies leaves nothing behind.
"""

import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.backend import Answer, Outcome
from llmkt_ray.profiles.engines.own_ray import connected_ray, ray
from llmkt_ray.profiles.engines.vllm_common import (
    check_length,
    engine_settings,
    environment,
    failure,
    identity_of,
    ranks,
    require_vllm,
    sampling,
    what_to_check,
)
from llmkt_ray.profiles.prompts import Prompt
from llmkt_ray.study import ProfileConfig, TaskResources


class Engine:
    """One synchronous vLLM engine.

    Args:
        model: folder or hub name.
        settings: vLLM's own engine settings.
        sampling: vLLM's sampling settings, `structured_outputs` as a dictionary.
    """

    def __init__(self, model: str, settings: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
        import vllm

        self._llm = vllm.LLM(model=model, disable_log_stats=True, **settings)
        form = sampling.get("structured_outputs")
        enforced = vllm.sampling_params.StructuredOutputsParams(**form) if form else None
        self._sampling = vllm.SamplingParams(**{**sampling, "structured_outputs": enforced})

    def ready(self) -> bool:
        """Returns True: the weights are loaded."""
        return True

    def answer(self, conversations: Sequence[Sequence[dict[str, str]]]) -> list[Answer]:
        """Returns one answer a conversation, in order; the engine batches them as it likes."""
        started = time.monotonic()
        outputs = self._llm.chat([list(messages) for messages in conversations], self._sampling, use_tqdm=False)
        latency_s = time.monotonic() - started
        return [
            Answer(
                output.outputs[0].text,
                finish_reason=output.outputs[0].finish_reason,
                prompt_tokens=len(output.prompt_token_ids),
                output_tokens=len(output.outputs[0].token_ids),
                latency_s=latency_s,
            )
            for output in outputs
        ]


class VllmSyncBackend:
    """A pool of actors with an engine each; one that dies is replaced, and its block reported.

    Args:
        config: the model, its sampling and engine settings.
        resources: what one actor asks of Ray; a GPU or a part of one is this alone.

    Raises:
        ProfileError: the engine's context is too short for prompts and answers.
    """

    def __init__(self, config: ProfileConfig, resources: TaskResources) -> None:
        check_length(config)
        self._config = config
        self._resources = resources
        self._actors: list[Any] = []
        self._open = ExitStack()

    def identity(self) -> dict[str, Any]:
        """Returns model and engine settings that can change a text."""
        return identity_of(self._config)

    def run(self, blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        """Yields (index of a block, its answers or why its engine died) as blocks finish.

        Raises:
            ResourceError: vLLM is not installed.
            ProfileError: an engine does not even start.
        """
        require_vllm()
        self._open.enter_context(connected_ray())
        waiting = iter(enumerate(blocks))
        running: dict[Any, tuple[int, Any]] = {}
        size = min(self._config.workers[-1], len(blocks))
        while len(self._actors) < size:
            self._actors.append(self._start(seed))
        for actor in self._actors:
            self._await_start(actor)
        free = list(self._actors)
        while True:
            while len(running) < size and (following := next(waiting, None)) is not None:
                number, block = following
                # One that died is replaced when there is something to ask, not before: a start takes its time.
                actor = free.pop() if free else self._another(seed)
                running[actor.answer.remote([prompt.messages for prompt in block])] = (number, actor)
            if not running:
                return
            [finished], _ = ray.wait(list(running), num_returns=1)
            number, actor = running.pop(finished)
            outcome: Outcome
            try:
                outcome = ray.get(finished)
                free.append(actor)
            except ray.exceptions.RayError as error:
                outcome = failure(error)
                # An engine that raised may still hold half a batch: it is not asked again.
                ray.kill(actor)
                self._actors.remove(actor)
            yield number, outcome

    def close(self) -> None:
        """Ends the actors, and the local Ray if `run` started it."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
        self._open.close()

    def _start(self, seed: int) -> Any:
        variables = environment(self._resources) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        number, asked = ranks(self._config), self._resources
        options = {"num_cpus": number * asked.cpus, "num_gpus": number * asked.gpus, "runtime_env": {"env_vars": variables}}
        settings = engine_settings(self._config, self._resources) | {"seed": seed, "revision": self._config.revision}
        return ray.remote(**options)(Engine).remote(os.path.expanduser(str(self._config.model)), settings, sampling(self._config))

    def _another(self, seed: int) -> Any:
        actor = self._start(seed)
        self._actors.append(actor)
        self._await_start(actor)
        return actor

    def _await_start(self, actor: Any) -> None:
        try:
            ray.get(actor.ready.remote())
        except ray.exceptions.RayError as error:
            raise ProfileError(
                f"vLLM does not start with model {self._config.model!r}: {failure(error)}; {what_to_check(self._config)}"
            ) from error
