"""A fresh machine: tokens are asked for, and there is no file with one."""

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


def test_engines_without_a_cluster_start_their_own_where_no_token_is_on_disk(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "both times" in done.stdout
    assert not list(tmp_path.rglob("*auth_token*"))
