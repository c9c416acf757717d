"""What a model keeps apart from its parameters, and how to look at a model without leaving a trace."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


def counters(model: nn.Module) -> dict[str, int | float]:
    """Returns the int and float attributes of a model and its modules, by dotted name.

    Some models count steps in them (MultiVAE's annealing): without them neither a hand-over nor a resume is exact.
    """
    found: dict[str, int | float] = {}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


def set_counters(model: nn.Module, values: Mapping[str, int | float]) -> None:
    """Sets attributes that `counters` returned."""
    modules = dict(model.named_modules())
    for dotted, value in values.items():
        prefix, _, name = dotted.rpartition(".")
        setattr(modules[prefix], name, value)


@contextmanager
def random_state_kept(seed: int | None = None) -> Iterator[None]:
    """Keeps the global generators of torch, numpy and Python as they were; inside they start from `seed` if given."""
    own_state, legacy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - RecBole draws from the legacy global state
    with torch.random.fork_rng():
        try:
            if seed is not None:
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002
            yield
        finally:
            random.setstate(own_state)
            np.random.set_state(legacy_state)  # noqa: NPY002


@contextmanager
def untouched(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Lets the model run inside without a trace: attributes, buffers, training mode and random state come back.

    Parameters are not copied: what runs inside must not step an optimizer.
    """
    attributes = [(module, {k: v for k, v in vars(module).items() if not k.startswith("_")}) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with random_state_kept(seed):
        try:
            yield
        finally:
            for module, kept in attributes:
                own = vars(module)
                for name in [k for k in own if not k.startswith("_") and k not in kept]:
                    del own[name]
                own.update(kept)
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers:
                        buffer.copy_(buffers[name])
