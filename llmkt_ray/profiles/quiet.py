"""Ray Data without its own progress output."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Keeps Ray Data's own bars and progress lines out of the study's; warnings and errors stay."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)
