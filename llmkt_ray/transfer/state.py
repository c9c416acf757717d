"""What a model keeps apart from its parameters, and how to look at a model without leaving a trace."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


def _loose(module: nn.Module) -> dict[str, torch.Tensor | np.ndarray]:
    """Returns the dense tensors and numeric arrays that a module holds as plain attributes.

    Sparse tensors are left out: they are graphs, which models make anew and never write to.
    """
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            (isinstance(value, torch.Tensor) and value.layout is torch.strided)
            or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")
        )
    }


def _cloned(value: torch.Tensor | np.ndarray) -> torch.Tensor:
    return value.detach().clone() if isinstance(value, torch.Tensor) else torch.from_numpy(value.copy())


def _write(target: torch.Tensor | np.ndarray, value: torch.Tensor) -> None:
    """Writes in place: others may hold the same tensor or array."""
    if isinstance(target, np.ndarray):
        target[...] = value.cpu().numpy()
    else:
        with torch.no_grad():
            target.copy_(value)


class ModelState:
    """All that training changes in a model, to be copied and brought back: an exact hand-over and resume need no more.

    These are parameters, buffers, numbers (`counters`), and tensors and arrays that are plain attributes: DiffRec keeps its losses
    by diffusion step in such tensors, LINE its order of users in such an array. Tensors that nobody has written to since this
    object was made (histories of all users) are not copied.

    Args:
        model: the model as it is before training.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._start = {
            (prefix, name): (value, value._version)
            for prefix, module in model.named_modules()
            for name, value in _loose(module).items()
            if isinstance(value, torch.Tensor)
        }

    def copy(self) -> dict[str, Any]:
        """Returns the state as tensors, numbers and plain containers."""
        attributes: dict[str, torch.Tensor] = {}
        for prefix, module in self._model.named_modules():
            for name, value in _loose(module).items():
                start, version = self._start.get((prefix, name), (None, 0))
                if isinstance(value, np.ndarray) or value is not start or value._version != version:
                    attributes[f"{prefix}.{name}" if prefix else name] = _cloned(value)
        tensors = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        return {"model": tensors, "counters": counters(self._model), "attributes": attributes}

    def load(self, state: Mapping[str, Any]) -> None:
        """Brings back what `copy` returned."""
        self._model.load_state_dict(state["model"])
        set_counters(self._model, state["counters"])
        modules = dict(self._model.named_modules())
        for dotted, value in state["attributes"].items():
            prefix, _, name = dotted.rpartition(".")
            current = _loose(modules[prefix]).get(name)
            if current is not None and tuple(current.shape) == tuple(value.shape):
                _write(current, value)
            else:
                setattr(modules[prefix], name, value.clone())


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
    """Lets the model run inside without a trace: attributes and their contents, buffers, training mode and random state come back.

    Parameters are not copied: what runs inside must not step an optimizer.
    """
    attributes = [(module, {k: v for k, v in vars(module).items() if not k.startswith("_")}) for module in model.modules()]
    contents = [(value, _cloned(value)) for module in model.modules() for value in _loose(module).values()]
    versions = [value._version if isinstance(value, torch.Tensor) else -1 for value, _ in contents]
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
            for (value, content), version in zip(contents, versions, strict=True):
                if isinstance(value, np.ndarray) or value._version != version:
                    _write(value, content)
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers:
                        buffer.copy_(buffers[name])
