"""Histories too long for one prompt: each part gets a text of its own, and the texts about one user are merged into the profile.

Round by round: all prompts are asked; users whose history had one part are done; of the others the texts are asked to be merged, in
groups where they do not fit into one prompt either, until one text is left. A user still ends in one row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import groupby

import numpy as np

from llmkt_ray.profiles.prompts import Prompt, PromptTemplate, Tokens, conversation, nouns_of
from llmkt_ray.profiles.table import ProfileRow
from llmkt_ray.seeds import canonical_json

Ask = Callable[[list[Prompt]], Mapping[tuple[str, str], ProfileRow]]
"""Gives a row for every prompt, by (user id, prompt hash)."""


@dataclass(frozen=True)
class Merger:
    """Builds the prompts that merge texts about the parts of one history.

    Attributes:
        template: its block `merge`, or the built-in one.
        tokens: the model's own counting.
        budget: most tokens a prompt may have.
        domain: what the items are.
    """

    template: PromptTemplate
    tokens: Tokens
    budget: int
    domain: str

    def merge(self, asked: Sequence[Prompt], texts: Sequence[str]) -> list[Prompt]:
        """Returns one prompt for all texts, or as few as hold two or more each; none where not even two texts fit.

        Args:
            asked: the prompts of one user's parts.
            texts: what the model said about each; untrusted.
        """
        # On one line each, so that a text cannot pass for several notes.
        lines = [" ".join(text.split()) for text in texts]
        for groups in range(1, len(lines) // 2 + 1):
            dealt = np.array_split(np.arange(len(lines)), groups)
            prompts = [
                self._prompt([asked[i] for i in rows], [lines[i] for i in rows], (group, groups)) for group, rows in enumerate(dealt)
            ]
            if all(prompt.tokens <= self.budget for prompt in prompts):
                return prompts
        return []

    def _prompt(self, asked: Sequence[Prompt], lines: list[str], part: tuple[int, int]) -> Prompt:
        items = tuple(item for prompt in asked for item in prompt.items)
        values = {**nouns_of(self.domain), "parts": lines, "total": len(items)}
        system = asked[0].system
        messages = conversation(system, self.template.render("merge", values), self.tokens)
        return Prompt(asked[0].user_id, messages, self.tokens.count_chat(messages), asked[0].history_size, items, part, system)


def in_rounds(prompts: list[Prompt], ask: Ask, merger: Merger) -> dict[str, ProfileRow]:
    """Returns one row for every user that is asked about.

    Args:
        prompts: all parts of a user one after the other.
        ask: asks a model; called once a round.
        merger: makes the prompts of the next round.
    """
    spent: dict[str, list[ProfileRow]] = {}
    ended: dict[str, ProfileRow] = {}
    while prompts:
        answered = ask(prompts)
        again: list[Prompt] = []
        for user, group in groupby(prompts, key=lambda prompt: prompt.user_id):
            asked = list(group)
            rows = [answered[user, prompt.hash] for prompt in asked]
            spent[user] = spent.get(user, []) + rows
            if asked[0].is_last:
                ended[user] = _joined(spent[user])
                continue
            texts = [row.profile for row in rows if row.profile is not None]
            errors = [str(row.error) for row in rows if row.profile is None]
            merged = [] if errors else merger.merge(asked, texts)
            again += merged
            if errors:
                why = f"{len(errors)} of {len(asked)} parts of the history have no text: {errors[0]}"
                ended[user] = replace(_joined(spent[user]), profile=None, error=f"part: {why}")
            elif not merged:
                why = f"not even two texts of {len(asked)} fit into prompt_budget {merger.budget}; raise it, or lower max_tokens"
                ended[user] = replace(_joined(spent[user]), profile=None, error=f"merge: {why}")
        prompts = again
    return ended


def _joined(rows: Sequence[ProfileRow]) -> ProfileRow:
    """Returns the last row with the tokens, seconds and prompt hashes of all that were needed for it."""
    if len(rows) == 1:
        return rows[0]
    return replace(
        rows[-1],
        prompt_hash=sha256(canonical_json([row.prompt_hash for row in rows]).encode()).hexdigest(),
        prompt_tokens=sum(row.prompt_tokens or 0 for row in rows),
        output_tokens=sum(row.output_tokens or 0 for row in rows),
        latency_s=sum(row.latency_s or 0.0 for row in rows),
        attempts=max(row.attempts for row in rows),
    )
