"""What ends the making of an artifact on Ray, in one sentence that names the artifact and says what to change."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayError, RayTaskError

from llmkt_ray.errors import LlmktError, ResourceError, SweepError
from llmkt_ray.sweep.pipeline import EmbeddingNode, ItemMeanNode, KnowledgeNode, Node, TargetNode, TextsNode

SELF_DRIVEN = (TextsNode, EmbeddingNode, ItemMeanNode, KnowledgeNode)
"""Artifacts that start actor pools of their own."""


@contextmanager
def named(node: Node) -> Iterator[None]:
    """Says of which artifact it is what ends its task or one of its actors: Ray names the process alone.

    Raises:
        ResourceError: a worker was killed, or ran out of memory.
        SweepError: the artifact's own code raised what no user can mend.
    """
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, LlmktError):
            raise error.cause from None
        told = f"{type(error.cause).__name__}: {error.cause}"
        raise SweepError(f"{node.kind} of {node.label} cannot be made ({told}); what is finished stays, run again to go on") from error
    except RayError as error:
        raise ResourceError(
            f"the worker that made {node.kind} of {node.label} was lost ({type(error).__name__}): killed, or out of memory; "
            f"{_remedy(node)}; what is finished stays, run again to go on"
        ) from error


def _remedy(node: Node) -> str:
    if isinstance(node, SELF_DRIVEN):
        return "raise `resources.profiles`, so that fewer of its workers share a node"
    fewer = f", or lower `reduction.fit_sample` ({node.config.fit_sample} users)" if isinstance(node, TargetNode) else ""
    return f"it has one CPU and no setting under `resources`: give nodes more memory a CPU{fewer}"
