"""A worker that Ray's memory monitor kills is a lost worker for Tune too.

Where a node runs out of memory (above 95 % by default) Ray kills a worker, and its task ends with `OutOfMemoryError`. That is no
`RayActorError`, and Tune 2.60 then ends the whole run: "Caught unexpected exception".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError


@contextmanager
def killed_for_memory_is_lost() -> Iterator[None]:
    """Lets Tune see every end of a worker that Ray itself brings about as `RayActorError`, for as long as the block lasts."""
    original = RayActorManager._actor_task_failed

    def task_failed(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
            exception = RayActorError(error_msg=str(exception))
        original(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = task_failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original
