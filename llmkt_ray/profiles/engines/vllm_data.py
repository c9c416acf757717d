"""vLLM through `ray.data.llm`: GPU actors with continuous batching across batches, tensor parallelism, and a pool that grows and shrinks.

A row that fails becomes an answer with an error. A row that kills the engine ends the pipeline after one restart; what is unanswered is
then run in halves, until the block that holds the row is alone.
"""

import os
from collections.abc import Generator, Iterator
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
    require_vllm,
    sampling,
    what_to_check,
)
from llmkt_ray.profiles.prompts import Prompt
from llmkt_ray.profiles.quiet import quiet_ray_data
from llmkt_ray.study import ProfileConfig, TaskResources

_ERROR = "__inference_error__"
_DEATHS_WITHOUT_AN_ANSWER = 3
"""So many pipelines in a row that answered nothing at all: it is the model or the machine, not a prompt."""


class VllmDataBackend:
    """A Ray Data pipeline around vLLM.

    Args:
        config: the model, its sampling, engine settings and pool size.
        resources: what one engine worker asks of Ray; `gpus: 0` runs the same code on CPUs.

    Raises:
        ProfileError: the engine's context is too short for prompts and answers.
    """

    def __init__(self, config: ProfileConfig, resources: TaskResources) -> None:
        check_length(config)
        self._config = config
        self._resources = resources
        self._fruitless = 0
        self._open = ExitStack()

    def identity(self) -> dict[str, Any]:
        """Returns model and engine settings that can change a text; the same for both ways of running vLLM."""
        return identity_of(self._config)

    def run(self, blocks: list[list[Prompt]], seed: int) -> Generator[tuple[int, Outcome]]:
        """Yields (index of a block, its answers or why its engine died) as blocks finish.

        Raises:
            ResourceError: vLLM is not installed.
            ProfileError: no pipeline answers anything.
        """
        require_vllm()
        # Before the pipeline is built: that would start a Ray of its own.
        self._open.enter_context(connected_ray())
        stack = [list(range(len(blocks)))]
        while stack:
            numbers = stack.pop()
            unanswered = set(numbers)
            death = ""
            try:
                for number, answers in self._pipeline({number: blocks[number] for number in numbers}, seed):
                    unanswered.discard(number)
                    self._fruitless = 0
                    yield number, answers
            except (ray.exceptions.RayError, ValueError, RuntimeError) as error:
                death = failure(error)
            if not unanswered:
                continue
            death = death or "the pipeline ended without an answer to every prompt"
            self._fruitless += len(unanswered) == len(numbers)
            if self._fruitless >= _DEATHS_WITHOUT_AN_ANSWER and len(blocks) > 1:
                raise ProfileError(f"vLLM does not answer with model {self._config.model!r}: {death}; {what_to_check(self._config)}")
            left = sorted(unanswered)
            if len(left) == 1:
                yield left[0], death
            else:
                stack += [left[len(left) // 2 :], left[: len(left) // 2]]

    def close(self) -> None:
        """Ends the local Ray if `run` started it; Ray Data has ended its actors with the pipeline."""
        self._open.close()

    def _pipeline(self, blocks: dict[int, list[Prompt]], seed: int) -> Iterator[tuple[int, list[Answer]]]:
        """Yields blocks whose every prompt is answered, from one run of a pipeline."""
        asked = [
            {"block": number, "place": place, "messages": [dict(message) for message in prompt.messages]}
            for number, block in blocks.items()
            for place, prompt in enumerate(block)
        ]
        answers: dict[int, dict[int, Answer]] = {number: {} for number in blocks}
        source = ray.data.from_items(asked, override_num_blocks=min(len(asked), 4 * self._config.workers[-1]))
        longest = int(engine_settings(self._config, self._resources)["max_model_len"])
        with quiet_ray_data():
            for row in self._processor(seed)(source).iter_rows():
                number = int(row["block"])
                answers[number][int(row["place"])] = answer_of(row, self._config.max_tokens, longest)
                if len(answers[number]) == len(blocks[number]):
                    yield number, [answers[number][place] for place in range(len(blocks[number]))]

    def _processor(self, seed: int) -> Any:
        # Imported here: it loads vLLM.
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        config, resources = self._config, self._resources
        workers = config.workers[0] if len(config.workers) == 1 else config.workers
        settings = engine_settings(config, resources) | {"seed": seed, "revision": config.revision}
        # On whole GPUs Ray's own placement (one a tensor-parallel rank) is right.
        bundle = None if resources.gpus == 1 else {"bundle_per_worker": _bundle(resources)}
        built = build_processor(
            vLLMEngineProcessorConfig(
                model_source=os.path.expanduser(str(config.model)),
                engine_kwargs=settings,
                concurrency=workers,
                batch_size=config.block_size,
                should_continue_on_error=True,
                placement_group_config=bundle,
                runtime_env={"env_vars": environment(resources)},
                log_engine_metrics=False,
            ),
            preprocess=_Ask(sampling(config)),
            # Rows with an error bypass the postprocess, so nothing may depend on it.
            postprocess=None,
        )
        # In place: assigning re-validates and then asks for a GPU. Without a bound a row that kills the engine restarts it for ever.
        built.get_stage_by_name("vLLMEngineStage").map_batches_kwargs.update(max_restarts=1, max_task_retries=1)
        return built


def answer_of(row: dict[str, Any], max_tokens: int, longest: int) -> Answer:
    """Returns a row of the pipeline as an answer; it carries other columns where it has an error.

    Args:
        row: of `ray.data.llm`.
        max_tokens: most tokens of an answer.
        longest: most tokens of prompt and answer together.
    """
    if row.get(_ERROR):
        return Answer(None, error=f"inference: {str(row[_ERROR])[:300]}")
    asked, tokens = int(row["num_input_tokens"]), int(row["num_generated_tokens"])
    return Answer(
        row["generated_text"],
        # ray.data.llm does not say why a text ended; reaching a limit is what "length" means.
        finish_reason="length" if tokens >= min(max_tokens, longest - asked) else "stop",
        prompt_tokens=asked,
        output_tokens=tokens,
        latency_s=float(row["time_taken_llm"]),
    )


class _Ask:
    """Adds the sampling settings to a row."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "sampling_params": self._settings}


def _bundle(resources: TaskResources) -> dict[str, float]:
    return {"CPU": resources.cpus, "GPU": resources.gpus} if resources.gpus else {"CPU": resources.cpus}
