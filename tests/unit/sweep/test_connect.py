"""A head that is not there is said at once: Ray by itself tries for twenty minutes."""

import socket

import pytest

from llmkt_ray.errors import ResourceError
from llmkt_ray.sweep.cluster import cluster, ray


def test_an_address_where_nothing_answers(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"  # taken, and nobody listens
        with pytest.raises(ResourceError, match="no Ray head answers at"), cluster(address):
            pass


def test_a_machine_that_is_too_busy_to_start_ray_is_told_so_and_not_shown_a_traceback(monkeypatch):
    def too_late(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does, with no class of its own

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", too_late)
    with pytest.raises(ResourceError, match=r"cannot be reached or started: The current node timed out .*; run: llmkt doctor"), cluster():
        pass
