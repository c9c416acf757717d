"""A Ray of this process's own, on loopback, its token never on disk: for engines that find no Ray connected, and for sweeps."""

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

if "ray" not in sys.modules:  # Ray reads the mode once, when it is imported
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import psutil
import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, without stubs

__all__ = ["connected_ray", "on_loopback", "own_token", "ray", "read_credentials", "start_ray"]

_TOKEN = secrets.token_hex(32)
"""The token of this process's own clusters: nobody else on the machine can use them."""
_LOGICAL_CPUS = 8
"""The least that a Ray of our own claims to have: every stage of `ray.data.llm` is an actor that asks for one, and most of them wait."""

_STARTS = 3
_TOO_SLOW = "timed out during startup"
"""What Ray says of a node that did not register within its 30 seconds, which no setting changes and a busy machine can exceed."""


def read_credentials() -> None:
    """Has Ray read its mode and token anew: it keeps those of its import and of the process's first cluster."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def own_token(wanted: bool = True) -> Iterator[None]:
    """Guards the local clusters of the block by this process's token, unless the environment has one or asks for none.

    Args:
        wanted: False: the credentials of the environment are used as they are.
    """
    guarded = wanted and os.environ.get("RAY_AUTH_MODE") == "token" and not os.environ.get("RAY_AUTH_TOKEN")
    if guarded:
        os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    read_credentials()
    try:
        yield
    finally:
        if guarded:
            os.environ.pop("RAY_AUTH_TOKEN", None)
            read_credentials()


@contextmanager
def on_loopback(wanted: bool = True) -> Iterator[None]:
    """Has all servers of a local cluster that starts in the block listen on loopback alone.

    Ray itself does so where it allows no clusters of several machines (macOS); elsewhere it takes the machine's address, and then its
    control store, raylet and workers listen on every interface. `ray.init(_node_ip_address="127.0.0.1")` is turned into that address too.

    Args:
        wanted: False: nothing is changed.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not wanted
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def start_ray(**settings: Any) -> None:
    """`ray.init`, tried up to three times where a local node does not come up in Ray's time.

    Args:
        settings: those of `ray.init`.
    """
    others = set(psutil.Process().children())
    for start in range(1, _STARTS + 1):
        try:
            ray.init(**settings)
        except Exception as error:  # Ray raises a plain one
            if _TOO_SLOW not in str(error) or start == _STARTS:
                raise
            ray.shutdown()
            for process in set(psutil.Process().children()) - others:  # what Ray leaves of a node that it gave up
                process.kill()
                process.wait()
        else:
            return


@contextmanager
def connected_ray() -> Iterator[None]:
    """Joins the Ray that this process is connected to; where there is none, starts a local one and ends it with the block."""
    if ray.is_initialized():
        yield
        return
    with own_token(), on_loopback():
        cpus = max(_LOGICAL_CPUS, os.cpu_count() or 1)
        start_ray(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()
