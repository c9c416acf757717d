"""How much computation lies before and after a tensor, read from the autograd graph."""

from typing import Any

from torch import Tensor


def _bottom_up(root: object) -> list[Any]:
    """Returns the nodes of the autograd graph below `root`, each after everything below it."""
    order: list[Any] = []
    done: set[object] = set()
    stack: list[Any] = [root]
    while stack:
        node = stack[-1]
        waiting = [below for below, _ in node.next_functions if below is not None and below not in done]
        if node in done or not waiting:
            stack.pop()
            if node not in done:
                done.add(node)
                order.append(node)
        else:
            stack.extend(waiting)
    return order


def depth_of(tensor: Tensor) -> int:
    """Returns the length of the longest path from a tensor to a leaf of the autograd graph."""
    if tensor.grad_fn is None:
        return 0
    height: dict[object, int] = {}
    for node in _bottom_up(tensor.grad_fn):
        height[node] = 1 + max((height[below] for below, _ in node.next_functions if below is not None), default=0)
    return height[tensor.grad_fn]


def distances_from(loss: Tensor) -> dict[object, int]:
    """Returns the length of the longest path from the loss down to every node of its autograd graph."""
    if loss.grad_fn is None:
        return {}
    distance: dict[object, int] = {}
    for node in reversed(_bottom_up(loss.grad_fn)):
        own = distance.setdefault(node, 0)
        for below, _ in node.next_functions:
            if below is not None:
                distance[below] = max(distance.get(below, 0), own + 1)
    return distance
