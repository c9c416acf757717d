"""Waiting for what other processes do, by the clock: a count of looks is longer the longer each look takes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], seconds: float = 400, every_s: float = 0.1) -> T:
    """Returns what the condition says as soon as that is true; fails where it never is."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"what was waited for did not come in {seconds:.0f} s"
        time.sleep(every_s)
    return found
