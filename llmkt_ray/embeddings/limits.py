"""How many tokens of a text an encoder reads: what lies beyond is cut, and nothing of it is in the vector."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkt_ray.embeddings.weights import find_weights
from llmkt_ray.study import EmbeddingConfig

WORTH_TELLING = 0.01
"""Share of all tokens that are not read from which on a run and a report say so."""

NOTES = ("tokens_read", "tokens_possible", "texts_cut", "tokens_cut")
"""Names of what `cut_notes` gives."""

_OWN_LIMIT = "sentence_bert_config.json"
_COUNTS_FROM_PADDING = frozenset(
    ["roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "ibert", "roberta-prelayernorm"]
)
"""Model types whose first position is that after the padding's: a table of 514 holds 512 tokens."""
_AT_ONCE = 1_000


def most_tokens(config: EmbeddingConfig, folder: Path) -> int | None:
    """Returns how many tokens an encoder can be made to read, None where its configuration sets no end.

    sentence-transformers reads as many as the model has positions for; vLLM never more than the model's own limit, or `max_model_len`.

    Args:
        config: the encoder.
        folder: its files.
    """
    if config.via == "vllm":
        ends = [config.engine.get("max_model_len"), _own_limit(folder) or _positions(folder)]
        return min((int(end) for end in ends if end is not None), default=None)
    return _positions(folder)


def _positions(folder: Path) -> int | None:
    """Returns how many tokens the model in `folder` has positions for."""
    settings = read_json(folder / "config.json")
    positions = settings.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    return positions - (int(settings.get("pad_token_id") or 0) + 1 if settings.get("model_type") in _COUNTS_FROM_PADDING else 0)


def cut_notes(config: EmbeddingConfig, texts: Sequence[str]) -> dict[str, Any]:
    """Returns what an encoder whose files are here does not read of texts, JSON values; empty where no tokenizer is among them.

    Returns:
        tokens_read (limit a text, markers of the model included), tokens_possible (the largest limit; None: no end), texts_cut (share of
        the texts that are longer), tokens_cut (share of the tokens of all texts that are not read).
    """
    # Imported here: studies whose encoder has no tokenizer must not wait for it.
    from transformers import AutoTokenizer

    folder = find_weights(config.encoder, config.revision).folder
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    most = most_tokens(config, folder)
    limit = _limit(config, folder, int(tokenizer.model_max_length), most)
    room = limit - int(tokenizer.num_special_tokens_to_add())
    cut = tokens = tokens_cut = 0
    for start in range(0, len(texts), _AT_ONCE):
        given = [config.prefix + text for text in texts[start : start + _AT_ONCE]]
        for ids in tokenizer(given, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]:
            cut += len(ids) > room
            tokens += len(ids)
            tokens_cut += max(0, len(ids) - room)
    return dict(zip(NOTES, (limit, most, cut / max(1, len(texts)), tokens_cut / max(1, tokens)), strict=True))


def cut_sentences(embeddings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns `cut_sentence` of every set of texts and encoder among the embeddings of a study's card, each sentence once."""
    told = (
        cut_sentence(entry.get("notes") or {}, f"{entry.get('llm')} ({entry.get('dataset')})", str(entry.get("encoder")))
        for entry in embeddings
    )
    return list(dict.fromkeys(sentence for sentence in told if sentence))


def cut_sentence(notes: Mapping[str, Any], source: str, encoder: str) -> str | None:
    """Returns what an encoder does not read of the texts of a source and what to do about it, None where that is next to nothing.

    Args:
        notes: of an artifact of embeddings; earlier ones say nothing of it.
        source: who wrote the texts.
        encoder: as results name it.
    """
    if (notes.get("tokens_cut") or 0.0) < WORTH_TELLING:
        return None
    limit, most = int(notes["tokens_read"]), notes.get("tokens_possible")
    more = most is None or most > limit
    mend = f"set embedding.max_tokens{f': {most}' if most else ''}" if more else "let them be shorter, or take an encoder that reads more"
    return (
        f"{notes['texts_cut']:.1%} of the texts of {source} are longer than the {limit:,} tokens that {encoder} reads, and "
        f"{notes['tokens_cut']:.1%} of all their tokens are not read: {mend}"
    )


def _limit(config: EmbeddingConfig, folder: Path, of_tokenizer: int, most: int | None) -> int:
    """Returns where texts are cut: as the study says, else as sentence-transformers and vLLM read it from the model's files."""
    own = _own_limit(folder)
    limits = [config.max_tokens, config.engine.get("max_model_len")]
    if limits == [None, None]:
        limits = [own] if own else [of_tokenizer, most]
    return min(int(limit) for limit in limits if limit is not None)


def _own_limit(folder: Path) -> int | None:
    limit = read_json(folder / _OWN_LIMIT).get("max_seq_length")
    return int(limit) if limit else None


def read_json(path: Path) -> dict[str, Any]:
    """Returns a file of a model's folder, empty where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
