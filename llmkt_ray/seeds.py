"""Seeds are derived from the study's seed and the key of the thing they are for.

So neither the order in which a cluster finishes nor the number of workers can change a result.
"""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """Returns the one JSON text of `value`: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_key(value: Any, length: int = 20) -> str:
    """Returns the first `length` hex digits of the SHA-256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def derive_seed(root: int, *key: str | int | float) -> int:
    """Returns a seed in [0, 2**31) that depends on `root` and on every part of `key`, in order."""
    digest = hashlib.sha256(canonical_json([root, *key]).encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF


def training_seed(study_seed: int, dataset: str, model: str, seed_index: int) -> int:
    """Returns the seed of a trial's randomness (METHOD.md, section 1).

    It is a function of these four and of nothing else: not of arm, alpha, layer, LLM or phase-2 settings, so
    that a treated trial and its control twins start from equal weights and see equal batches.
    """
    return derive_seed(study_seed, "training", dataset, model, seed_index)
