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


LISTENING = """
import psutil, ray
from llmkt_ray.profiles.engines.own_ray import connected_ray
from llmkt_ray.sweep.cluster import cluster
here = lambda: {"connected": connected_ray(), "cluster": cluster(num_cpus=1)}
for name in ("connected", "cluster"):
    with here()[name]:
        assert ray.get(ray.remote(lambda: 7).remote()) == 7
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        found = [(each.name(), *at.laddr) for each in family for at in each.net_connections("tcp") if at.status == psutil.CONN_LISTEN]
        assert {"gcs_server", "raylet"} <= {who for who, *_ in found}, found
        for who, ip, port in found:
            assert ip.removeprefix("::ffff:") in ("127.0.0.1", "::1"), f"{who} listens on {ip}:{port}"
        print(name, len(found), "servers on loopback")
"""


def test_all_servers_of_a_ray_of_our_own_are_on_loopback(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], env=kept | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("servers on loopback") == 2


def test_engines_without_a_cluster_start_their_own_where_no_token_is_on_disk(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "both times" in done.stdout
    assert not list(tmp_path.rglob("*auth_token*"))
