"""A model's own tokenizer, from a folder or the hub, for token budgets and costs."""

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from llmkt_ray.errors import ProfileError

_PROBE = "Describe this taste."


class ModelTokens:
    """Counts tokens with the tokenizer of a model.

    Args:
        model: a folder or a hub name.
        revision: of a hub model.

    Attributes:
        takes_system: False where the chat template refuses a system message, as Gemma 2's does, or leaves it out.

    Raises:
        ProfileError: there is no tokenizer, or it has no chat template that takes a user's message.
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
        user = {"role": "user", "content": _PROBE}
        refused = self._refusal([user])
        if refused is not None:
            raise ProfileError(
                f"the chat template of model {model!r} cannot be asked with one user message ({refused}); use an instruction-tuned model, "
                "or mend the template"
            )
        self.takes_system = self._refusal([{"role": "system", "content": _PROBE}, user | {"content": "."}]) is None

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of tokens of each text, without markers."""
        return [len(ids) for ids in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def count_chat(self, messages: Sequence[dict[str, str]]) -> int:
        """Returns the number of tokens of a conversation as the model is given it."""
        return len(self._tokenizer(self._chat(messages), add_special_tokens=False)["input_ids"])

    def _chat(self, messages: Sequence[dict[str, str]]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def _refusal(self, messages: Sequence[dict[str, str]]) -> str | None:
        """Returns why the chat template does not take these messages, one of which is the probe; None where it does."""
        try:
            text = self._chat(messages)
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            return " ".join(str(error).split())[:200]
        return None if _PROBE in text else "it leaves the text out"


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
