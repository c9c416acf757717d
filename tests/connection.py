"""A connection of this process to a Ray head of `tests/clusters.py`, which itself does not import Ray."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llmkt_ray.sweep.cluster import cluster
from tests.clusters import Head


@contextmanager
def connected(head: Head) -> Iterator[Head]:
    """Waits for a head, joins it with its token for as long as the block lasts, and ends it."""
    try:
        head.wait()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_AUTH_MODE", "token")
            patch.setenv("RAY_AUTH_TOKEN", head.token)
            with cluster(head.gcs_address):
                yield head
    finally:
        head.end()
