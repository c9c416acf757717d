"""A head that is not there is said at once: Ray by itself tries for twenty minutes."""

import socket

import pytest

from llmkt_ray.errors import ResourceError
from llmkt_ray.sweep.cluster import cluster


def test_an_address_where_nothing_answers(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"  # taken, and nobody listens
        with pytest.raises(ResourceError, match="no Ray head answers at"), cluster(address):
            pass
