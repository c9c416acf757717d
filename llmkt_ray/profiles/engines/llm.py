"""Profiles by a language model: prompts, part files, retries, and every user in exactly one row, whatever the engine does."""

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa

from llmkt_ray.data.history import histories
from llmkt_ray.data.leaks import verify
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.profiles import structured
from llmkt_ray.profiles.chunks import Merger, in_rounds
from llmkt_ray.profiles.engines.backend import Answer, Backend, Outcome
from llmkt_ray.profiles.engines.base import Job, Written
from llmkt_ray.profiles.prompts import PROMPT_VERSION, Prompt, PromptBuilder, PromptTemplate, Tokens
from llmkt_ray.profiles.table import ProfileRow, as_table
from llmkt_ray.seeds import derive_seed
from llmkt_ray.study import ProfileConfig

_UNWANTED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffd]")
"""Control characters, lone surrogates and replacement characters: none belongs into a profile."""
_Key = tuple[str, str]
"""User (or item) id and prompt hash."""
_SINGLES = 32
"""A block this small that killed its engine is tried again one prompt at a time, a larger one in halves."""


_WINDOW = 20_000
"""Users whose prompts are in memory at once. Ray Data's pipeline starts anew for each window: so many that this takes minutes in hours."""


class LlmEngine:
    """Asks a language model for every user's profile.

    Args:
        config: the model, its sampling and prompts.
        backend: how the model runs.
        tokens: makes the model's token counter; called when prompts are built, not before.
    """

    is_llm = True
    draws = True

    def __init__(self, config: ProfileConfig, backend: Backend, tokens: Callable[[], Tokens]) -> None:
        self._config = config
        self._backend = backend
        self._tokens = tokens
        if config.prompt is not None:
            PromptTemplate("generic", config.prompt)

    def identity(self) -> dict[str, Any]:
        """Returns model, prompt version, sampling and generation: what the texts depend on beside the histories."""
        config = self._config
        own = PromptTemplate("generic", config.prompt).digest if config.prompt else None
        return {
            "engine": "llm",
            **self._backend.identity(),
            "prompt": {
                "version": PROMPT_VERSION,
                "own": own,
                "built_in": None if own else {domain: PromptTemplate(domain).digest for domain in ("movies", "music", "books", "generic")},
                "budget": config.prompt_budget,
                "demographics": config.demographics,
                "full_history": config.full_history,
                # Named only where it matters: what was paid for without it keeps its key.
                **({"long_history": "chunks", "merge": PromptTemplate("generic").merge_digest} if config.long_history == "chunks" else {}),
            },
            "sampling": {"max_tokens": config.max_tokens, "temperature": config.temperature, "top_p": config.top_p},
            "generation": config.generation,
            **({"structured": list(config.structured)} if config.structured else {}),
        }

    def builder(self, data: PreparedData, tokens: Tokens | None = None) -> PromptBuilder:
        """Returns what makes the prompts of a split; `tokens` counts in place of the model's own tokenizer."""
        config = self._config
        template = PromptTemplate(data.domain, config.prompt)
        return PromptBuilder(
            template,
            tokens or self._tokens(),
            config.prompt_budget,
            config.demographics,
            config.full_history,
            config.long_history == "chunks",
            config.structured,
        )

    def write(self, data: PreparedData, job: Job) -> Written:
        """Writes one row for every user, going on from the part files of an interrupted run.

        Raises:
            ProfileError: no user's profile can be written (a wrong key, no such model, prompts that do not fit).
            StorageError: part files cannot be written.
        """
        builder = self.builder(data)
        index = {str(token): user for user, token in enumerate(data.user_tokens)}
        by_user = groupby(builder.build(data), key=lambda prompt: prompt.user_id)
        users, items, tables = [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
        merger = Merger(builder.template, builder.tokens, builder.budget, data.domain)
        shortened = in_parts = 0
        finished = job.parts.answers()
        resumed: set[_Key] = set()
        done = asked = 0

        def ask(prompts: list[Prompt]) -> dict[_Key, ProfileRow]:
            nonlocal done, asked
            waiting = {(prompt.user_id, prompt.hash) for prompt in prompts if prompt.is_last}
            done += len(waiting)

            def tell(key: _Key) -> None:
                waiting.discard(key)
                job.progress(done - len(waiting), data.n_users)

            rows = self._charged(prompts, finished, builder.template.version, job, tell)
            resumed.update(rows.keys() & finished.keys())
            asked += self._asked(rows)
            return rows

        with closing(self._backend):
            while prompts := [prompt for _, group in islice(by_user, _WINDOW) for prompt in group]:
                users.append(np.repeat([index[prompt.user_id] for prompt in prompts], [len(prompt.items) for prompt in prompts]))
                items.append(np.concatenate([np.array(prompt.items, np.int64) for prompt in prompts]))
                shortened += sum(prompt.is_last and len(prompt.items) < prompt.history_size for prompt in prompts)
                in_parts += len({prompt.user_id for prompt in prompts if not prompt.is_last})
                tables.append(as_table(in_rounds(prompts, ask, merger).values()))
                del prompts
        certificate = verify(data, np.concatenate(users), np.concatenate(items))
        sizes = histories(data, full=self._config.full_history).sizes()
        unasked = as_table(
            ProfileRow(
                user_id=str(user),
                profile=None,
                llm=str(self._config.model),
                prompt_version=builder.template.version,
                history_size=int(size),
                error="no_history: the user has no train rows",
            )
            for user, size in zip(data.user_tokens, sizes, strict=True)
            if not size
        )
        warnings = (
            [f"{shortened:,} histories did not fit into {builder.budget} tokens; their most telling rows were used"] if shortened else []
        )
        if not builder.tokens.exact:
            warnings.append("prompt tokens are estimated at 4 characters each: the model's tokenizer is not at hand")
        counts = {"asked": asked, "resumed_rows": len(resumed), "shortened_histories": shortened, "histories_in_parts": in_parts}
        return Written(pa.concat_tables([*tables, unasked]), certificate, {"warnings": warnings, **counts})

    def tokens(self) -> Tokens:
        """Returns the model's token counter."""
        return self._tokens()

    def ask(self, prompts: list[Prompt], version: str, job: Job) -> tuple[dict[str, ProfileRow], dict[str, int]]:
        """Returns a row for every prompt by its id, going on from the part files of an interrupted run, and counts for the notes.

        Args:
            prompts: one for each text, whatever it is about.
            version: of the template that made them.
            job: seed, progress and part files.

        Raises:
            ProfileError: no text can be written.
            StorageError: part files cannot be written.
        """
        finished = job.parts.answers()
        ended: set[_Key] = set()

        def tell(key: _Key) -> None:
            ended.add(key)
            job.progress(len(ended), len(prompts))

        with closing(self._backend):
            rows = self._charged(prompts, finished, version, job, tell)
        counts = {"asked": self._asked(rows), "resumed_rows": len(rows.keys() & finished.keys())}
        return {row.user_id: row for row in rows.values()}, counts

    def _charged(
        self, prompts: list[Prompt], finished: Mapping[_Key, list[ProfileRow]], version: str, job: Job, tell: Callable[[_Key], None]
    ) -> dict[_Key, ProfileRow]:
        """Returns a row for every prompt: the best of `finished`, or what the model says now. All answers are charged.

        Args:
            prompts: what is asked.
            finished: rows of the run before, of these prompts or of others, one an attempt and the best last.
            version: of the template.
            job: where rows go and are charged.
            tell: called with the key of every row, when it is there.
        """
        keys = {(prompt.user_id, prompt.hash) for prompt in prompts}
        before = {key: answers for key, answers in finished.items() if key in keys}
        job.charge([row for answers in before.values() for row in answers])
        rows = {key: answers[-1] for key, answers in before.items()}
        for key in rows:
            tell(key)
        with closing(self._complete(prompts, rows, version, job)) as ended:
            for row in ended:
                key = (row.user_id, row.prompt_hash or "")
                rows[key] = row
                tell(key)
        return rows

    def _asked(self, rows: Mapping[_Key, ProfileRow]) -> int:
        # A row that was forgotten on request has more attempts than there can be.
        return sum(min(row.attempts, self._config.attempts) for row in rows.values())

    def _complete(self, prompts: list[Prompt], rows: dict[_Key, ProfileRow], version: str, job: Job) -> Generator[ProfileRow]:
        """Yields a row for every prompt that has none yet or an error worth another attempt, until all have ended."""
        attempts = {key: row.attempts for key, row in rows.items()}
        finished = {key for key, row in rows.items() if row.profile is not None or row.attempts >= self._config.attempts}
        todo = [prompt for prompt in prompts if (prompt.user_id, prompt.hash) not in finished]
        blocks = _blocks(todo, attempts, self._config.block_size)
        while blocks:
            again: list[list[Prompt]] = []
            retry: list[Prompt] = []
            for tried, equal in _by_attempt(blocks, attempts).items():
                with closing(self._backend.run(equal, _seed(job.seed, tried))) as outcomes:
                    for number, outcome in outcomes:
                        block = equal[number]
                        if isinstance(outcome, str) and len(block) > 1:
                            # One of these killed the engine. Alone each shows itself; the innocent lose no attempt.
                            half = 1 if len(block) <= _SINGLES else -(-len(block) // 2)
                            again += [block[start : start + half] for start in range(0, len(block), half)]
                            continue
                        ended = []
                        for prompt, answer in zip(block, _answers(outcome), strict=True):
                            key = (prompt.user_id, prompt.hash)
                            attempts[key] = attempts.get(key, 0) + 1
                            ended.append(self._row(prompt, answer, attempts[key], version))
                            if ended[-1].profile is None and answer.retry and attempts[key] < self._config.attempts:
                                if isinstance(outcome, str):
                                    again.append([prompt])  # what killed an engine must not take others with it
                                else:
                                    retry.append(prompt)
                        job.parts.append(ended)
                        yield from ended
                        job.charge(ended)
            blocks = again + _blocks(retry, attempts, self._config.block_size)

    def _row(self, prompt: Prompt, answer: Answer, attempts: int, version: str) -> ProfileRow:
        text = clean(answer.text) if answer.text is not None else None
        error = answer.error or (None if text else "empty: the model gave no text")
        if text and self._config.structured:
            text = structured.as_text(text, self._config.structured)
            error = error or (None if text else "malformed: not the JSON object that was asked for, or nothing in it")
        return ProfileRow(
            user_id=prompt.user_id,
            profile=None if error else text,
            llm=str(self._config.model),
            prompt_version=version,
            history_size=prompt.history_size,
            prompt_hash=prompt.hash,
            # Where nothing was answered nothing is known to have been read, or billed.
            prompt_tokens=answer.prompt_tokens or (None if answer.text is None else prompt.tokens),
            output_tokens=answer.output_tokens,
            finish_reason=answer.finish_reason,
            attempts=attempts,
            error=error,
            latency_s=answer.latency_s,
        )


def _by_attempt(blocks: list[list[Prompt]], attempts: Mapping[_Key, int]) -> dict[int, list[list[Prompt]]]:
    """Returns blocks by how often their prompts were tried; all prompts of a block equally often."""
    found: dict[int, list[list[Prompt]]] = {}
    for block in blocks:
        found.setdefault(attempts.get((block[0].user_id, block[0].hash), 0), []).append(block)
    return found


def _blocks(prompts: list[Prompt], attempts: Mapping[_Key, int], size: int) -> list[list[Prompt]]:
    """Returns prompts in blocks of at most `size`, those that were tried equally often together."""
    equal = _by_attempt([[prompt] for prompt in prompts], attempts).values()
    return [[prompt for [prompt] in group[start : start + size]] for group in equal for start in range(0, len(group), size)]


def _seed(seed: int, tried: int) -> int:
    """Returns the seed of another attempt: with the same one the same answer would come, empty or malformed once more."""
    return derive_seed(seed, "attempt", tried) if tried else seed


def clean(text: str) -> str:
    """Returns a model's text without what is no text: control and replacement characters, lone surrogates, space around it."""
    return _UNWANTED.sub("", text).strip()


def _answers(outcome: Outcome) -> list[Answer]:
    return [Answer(None, error=f"engine_died: {outcome[:300]}")] if isinstance(outcome, str) else outcome
