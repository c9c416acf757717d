"""A model's own tokenizer, from a folder or the hub, for token budgets and costs."""

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from llmkt_ray.errors import ProfileError


class ModelTokens:
    """Counts tokens with the tokenizer of a model.

    Args:
        model: a folder or a hub name.
        revision: of a hub model.

    Raises:
        ProfileError: there is no tokenizer, or it has no chat template.
    """

    exact = True

    def __init__(self, model: str, revision: str | None = None) -> None:
        # Imported here: studies without a language model must not wait for it.
        from transformers import AutoTokenizer

        source = os.path.expanduser(model)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                source, revision=revision, trust_remote_code=False, local_files_only=not Path(source).is_dir() and not hub_answers()
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ProfileError(
                f"model {model!r} has no tokenizer that can be read here ({' '.join(str(error).split())[:200]}); "
                "give the folder of a whole model (config, tokenizer, weights), or the name of one on the hub and access to it"
            ) from error
        if not self._tokenizer.chat_template:
            raise ProfileError(f"model {model!r} has no chat template, so it cannot be asked anything; use an instruction-tuned model")

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of tokens of each text, without markers."""
        return [len(ids) for ids in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def count_chat(self, messages: Sequence[dict[str, str]]) -> int:
        """Returns the number of tokens of a conversation as the model is given it."""
        text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])


@cache
def hub_answers() -> bool:
    """Says whether the hub can be asked at all, within 5 s: without a network its client would try each file for minutes."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        asked = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310 - the hub's own address
        with urllib.request.urlopen(asked, timeout=5):  # noqa: S310
            return True
    except urllib.error.HTTPError:  # it answers, if only that this page is not for us
        return True
    except (OSError, ValueError):
        return False
