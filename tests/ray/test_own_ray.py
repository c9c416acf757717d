"""A Ray of our own: on loopback alone, and guarded on a fresh machine too, where there is no file with a token."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

PROGRAM = """
import os
from llmkt_ray.profiles.engines.own_ray import connected_ray, ray
for _ in range(2):
    with connected_ray():
        assert os.environ["RAY_AUTH_TOKEN"]
        with connected_ray():
            assert ray.get(ray.put(7)) == 7
        assert ray.is_initialized(), "the inner block ended a Ray that it had only joined"
    assert not ray.is_initialized()
    assert "RAY_AUTH_TOKEN" not in os.environ
print("both times")
"""


SLOW = """
import inspect
import psutil, ray
from ray._private.node import Node
from llmkt_ray.sweep.cluster import cluster
words, start, nodes = "The current node timed out during startup. ", Node.start_ray_processes, []
assert words in inspect.getsource(Node), "what Ray says has changed"
def slow(node):
    start(node)
    nodes.append(node)
    if len(nodes) < 3:
        raise Exception(words)
Node.start_ray_processes = slow
with cluster(num_cpus=1):
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    names = [each.name() for each in psutil.Process().children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    assert (names.count("raylet"), names.count("gcs_server")) == (1, 1), names
print("started at the third try")
"""


LISTENING = """
import contextlib
import psutil, ray
from llmkt_ray.profiles.engines.own_ray import connected_ray
from llmkt_ray.sweep.cluster import cluster
here = lambda: {"connected": connected_ray(), "cluster": cluster(num_cpus=1)}
for name in ("connected", "cluster"):
    with here()[name]:
        assert ray.get(ray.remote(lambda: 7).remote()) == 7
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        found = []
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # a worker that ended while we looked
                found += [(each.name(), *at.laddr) for at in each.net_connections("tcp") if at.status == psutil.CONN_LISTEN]
        assert {"gcs_server", "raylet"} <= {who for who, *_ in found}, found
        for who, ip, port in found:
            assert ip.removeprefix("::ffff:") in ("127.0.0.1", "::1"), f"{who} listens on {ip}:{port}"
        print(name, len(found), "servers on loopback")
"""


def run(program: str, **more: str) -> str:
    """Runs a program with no setting of Ray's but patience for a busy machine, and returns what it says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"PYTHONPATH": os.getcwd(), "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300"} | more
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_all_servers_of_a_ray_of_our_own_are_on_loopback() -> None:
    assert run(LISTENING).count("servers on loopback") == 2


def test_a_node_that_did_not_come_up_in_ray_s_time_is_started_again_and_nothing_is_left_of_it() -> None:
    assert "started at the third try" in run(SLOW)


def test_engines_without_a_cluster_start_their_own_where_no_token_is_on_disk(tmp_path: Path) -> None:
    assert "both times" in run(PROGRAM, HOME=str(tmp_path), RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0")
    assert not list(tmp_path.rglob("*auth_token*"))
