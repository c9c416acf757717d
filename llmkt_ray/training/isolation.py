"""A trial neither reads nor leaves global state: generators, threads, gradient mode, anomaly mode and default dtype."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from llmkt_ray.errors import ResourceError, TrainingError
from llmkt_ray.transfer.state import random_state_kept


@contextmanager
def isolated(*, device: str, threads: int) -> Iterator[None]:
    """Runs what is inside on `threads` threads with known global state, and puts everything back afterwards.

    Raises:
        TrainingError: `threads` is below 1, or the device is neither "cpu" nor "cuda".
        ResourceError: a GPU is asked for where there is none.
    """
    if threads < 1:
        raise TrainingError(f"a trial needs at least 1 thread, but got {threads}")
    if device not in ("cpu", "cuda"):
        raise TrainingError(f"device must be 'cpu' or 'cuda', but got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            "the trial asks for a GPU, but torch sees none here; set resources.trial.gpus to 0, or run it where there is one"
        )
    before = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    # numpy's linear algebra (EASE inverts a matrix) on one thread: how it is cut over threads changes its last bits. torch has its own.
    with random_state_kept(), torch.autograd.set_detect_anomaly(False), threadpool_limits(1, user_api="blas"):
        try:
            torch.set_num_threads(threads)
            torch.set_grad_enabled(True)
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.set_grad_enabled(before[1])
            torch.set_default_dtype(before[2])


def seed_globals(seed: int) -> None:
    """Seeds the global generators that models draw from while they train (dropout, sampling of graph views)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - RecBole's models draw from the global generator
    # torch.manual_seed also looks for every kind of accelerator, each time: 0.2 ms in epochs of 40.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
