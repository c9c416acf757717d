"""Where an activation can be read: a dotted module name with a place, an element and a position.

The grammar of a tap's name is `<module>[:input][i][j]@k`:

    encoder.1            the output of module `encoder.1`
    decoder:input        the first positional input of module `decoder`; `decoder:input[1]` is the second
    forward[1]           element 1 of what the model's own `forward` returns; `forward` where it returns one tensor
    embedding@0          position 0 of a three-dimensional activation `(batch, positions, width)`

The root module is never called in RecBole's training step (`calculate_loss` calls `self.forward` directly, so a
forward hook on the root would never fire): its `forward` is wrapped on the instance instead.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmkt_ray.errors import LayerError

ROOT = "forward"
_NAME = re.compile(r"(?P<module>[^:\[\]@]+)(?P<input>:input)?(?P<path>(\[\d+\])*)(@(?P<position>\d+))?")


@dataclass(frozen=True)
class Site:
    """One place in a model.

    Attributes:
        module: dotted module name, or `forward` for the model's own forward.
        is_input: True: a positional input of the module; False: its output.
        path: indices into nested tuples or lists, outermost first; of an input the first index is the argument.
        position: index along the dimension that is not the batch, of a three-dimensional activation; None: all.
    """

    module: str
    is_input: bool = False
    path: tuple[int, ...] = ()
    position: int | None = None

    @property
    def name(self) -> str:
        """The site's name in the grammar above."""
        path = self.path[1:] if self.is_input and self.path[:1] == (0,) and len(self.path) == 1 else self.path
        text = self.module + (":input" if self.is_input else "") + "".join(f"[{i}]" for i in path)
        return text if self.position is None else f"{text}@{self.position}"

    @staticmethod
    def parse(name: str) -> "Site":
        """Returns the site that a name stands for.

        Raises:
            LayerError: the name does not follow the grammar.
        """
        match = _NAME.fullmatch(name.strip())
        if match is None:
            raise LayerError(f"layer {name!r} is not a tap's name; allowed: module, module:input, module[0], forward[1], module@0")
        path = tuple(int(i) for i in re.findall(r"\[(\d+)\]", match["path"]))
        is_input = match["input"] is not None
        position = None if match["position"] is None else int(match["position"])
        return Site(match["module"], is_input, path or ((0,) if is_input else ()), position)


def tensors_in(value: object, path: tuple[int, ...] = (), depth: int = 3) -> list[tuple[tuple[int, ...], Tensor]]:
    """Returns every tensor in nested tuples and lists with its path, in order."""
    if isinstance(value, Tensor):
        return [(path, value)]
    if depth == 0 or not isinstance(value, tuple | list):
        return []
    return [found for index, element in enumerate(value) for found in tensors_in(element, (*path, index), depth - 1)]


def pick(value: object, path: tuple[int, ...]) -> Tensor | None:
    """Returns the tensor at `path`, or None where there is none."""
    for index in path:
        if not isinstance(value, tuple | list) or index >= len(value):
            return None
        value = value[index]
    return value if isinstance(value, Tensor) else None


def watch(model: nn.Module, module: str, is_input: bool, see: Callable[[object], None]) -> Callable[[], None]:
    """Calls `see` with the output (or the tuple of inputs) of every call of a module, until removed.

    Args:
        model: the model.
        module: dotted module name, or `forward`.
        is_input: watch the positional inputs instead of the output.
        see: called with what was met; its return value is ignored, so that nothing changes in the model.

    Returns:
        a function that removes the watch and leaves no trace.

    Raises:
        LayerError: the model has no such module.
    """
    if module == ROOT:
        return _wrap_forward(model, is_input, see)
    try:
        target = model.get_submodule(module)
    except AttributeError as error:
        raise LayerError(f"layer {module!r} does not exist in {type(model).__name__}; run: llmkt layers {type(model).__name__}") from error

    def before(_: nn.Module, args: tuple[object, ...]) -> None:
        see(args)

    def after(_: nn.Module, __: tuple[object, ...], output: object) -> None:
        see(output)

    handle = target.register_forward_pre_hook(before) if is_input else target.register_forward_hook(after)
    return handle.remove


def _wrap_forward(model: nn.Module, is_input: bool, see: Callable[[object], None]) -> Callable[[], None]:
    """Wraps `forward` on this instance only; the removal uncovers the class's method again."""
    inner = model.forward

    def forward(*args: object, **kwargs: object) -> object:
        if is_input:
            see(args)
        output = inner(*args, **kwargs)
        if not is_input:
            see(output)
        return output

    own = vars(model)
    covered = own.get("forward")
    own["forward"] = forward

    def remove() -> None:
        if own.get("forward") is not forward:
            raise LayerError(f"forward of {type(model).__name__} was wrapped again by someone else; remove watches in reverse order")
        if covered is None:
            del own["forward"]
        else:
            own["forward"] = covered

    return remove


def select(activation: Tensor, position: int | None, batch_dim: int) -> Tensor:
    """Returns position `position` of a three-dimensional activation, with the batch first; the whole where None."""
    if position is None:
        return activation
    return activation.select(1 - batch_dim, position)


def is_traced(activation: Tensor) -> bool:
    """Says whether a gradient can flow from this activation into the model."""
    return torch.is_floating_point(activation) and activation.requires_grad
