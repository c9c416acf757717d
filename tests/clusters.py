"""Real Ray clusters for tests, on one machine: a head with a token, nodes that can be added and killed, an autoscaler with fake GPUs.

Everything is ended by the pids that were started here: other Rays on the machine are not touched.
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from tests.waiting import wait_until

HOST = "127.0.0.1"
FAKE_HEAD_NODE_ID = "f" * 51 + "00000"
"""As in Ray's provider of fake nodes; Ray itself is not imported here: it reads its authentication mode when it is."""

_RAY_START = """
for attempt in 1 2 3; do
    "${@:2}" >"$1" 2>&1
    code=$?
    grep -Eq "timed out during startup|Timed out waiting for node info" "$1" || break
done
exit $code
"""
"""Ray gives a node, and the head's client server, a fixed 30 s, which a busy machine may exceed: tried again. First argument: the log."""


def free_port() -> int:
    """Returns a port that nobody listens on, of those that neither the kernel nor Ray's workers take by themselves meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


def kill_tree(process: psutil.Process) -> None:
    """Kills a process and everything below it."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)


class Head:
    """A Ray head of its own, known by its dashboard's address and its token.

    Args:
        home: what LLMKT_HOME is for its jobs.
        num_cpus: logical CPUs of the head itself.
        node_types: name to resources of nodes that an autoscaler may start, {"gpu": {"CPU": 1, "GPU": 1}}; None: no autoscaler.
        max_nodes: of each type.
        idle_s: seconds after which an idle node is ended (at least 15: the autoscaler needs as long to see what runs).
    """

    def __init__(
        self, home: Path, *, num_cpus: int = 2, node_types: dict[str, dict[str, int]] | None = None, max_nodes: int = 2, idle_s: float = 15
    ) -> None:
        self.token, self.dashboard_port, self.port, self.home = secrets.token_hex(32), free_port(), free_port(), home
        self.address = f"http://{HOST}:{self.dashboard_port}"
        self.gcs_address = f"{HOST}:{self.port}"
        self.folder = tempfile.mkdtemp(prefix="llmkt-", dir="/tmp")
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._starts = 0
        options = ["--head", f"--num-cpus={num_cpus}", f"--port={self.port}", f"--node-ip-address={HOST}", f"--temp-dir={self.folder}/ray"]
        options += ["--include-dashboard=true", f"--dashboard-host={HOST}", f"--dashboard-port={self.dashboard_port}"]
        options += ["--dashboard-agent-listen-port=0", f"--ray-client-server-port={free_port()}"]
        more: dict[str, str] = {}
        if node_types is not None:
            config = Path(self.folder) / "autoscaling.json"
            config.write_text(json.dumps(autoscaling(node_types, max_nodes, idle_s, self.gcs_address)))
            options.append(f"--autoscaling-config={config}")
            more = {
                "RAY_FAKE_CLUSTER": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            }
        self.process = self._ray_start(options, more)

    def environment(self, token: str | None) -> dict[str, str]:
        """Returns the environment of a client with this token, or with none."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"  # the job's python is the one of this environment
        kept |= {"OMP_NUM_THREADS": "1", "LLMKT_HOME": str(self.home), "RAY_AUTH_MODE": "token" if token else "disabled"}
        kept |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300"}
        return kept | ({"RAY_AUTH_TOKEN": token} if token else {})

    def add_node(self, num_cpus: int = 2) -> subprocess.Popen[bytes]:
        """Starts a node of this cluster and returns the process at the top of it."""
        # A folder of its own, as on a machine of its own: a node that starts clears away what jobs left in the folder that it is given.
        own = f"--temp-dir={self.folder}/node{len(self.nodes) + 1}"
        node = self._ray_start([f"--address={self.gcs_address}", f"--node-ip-address={HOST}", f"--num-cpus={num_cpus}", own], {})
        self.nodes.append(node)
        return node

    def wait(self) -> "Head":
        """Returns when the dashboard answers."""
        wait_until(self._answers, every_s=0.5)
        return self

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the head did not start: {Path(self.folder, 'start1.log').read_text()[-3000:]}"
        try:
            self.get("/api/jobs/")
        except OSError:
            return False
        return True

    def get(self, path: str) -> Any:
        """Returns the JSON that the dashboard says at a path."""
        request = urllib.request.Request(f"{self.address}{path}", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def raylets(self) -> dict[str, psutil.Process]:
        """Returns node id to raylet of the fake nodes that the autoscaler has started."""
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if line and line[0].endswith("raylet") and any(self.folder in part for part in line):
                try:
                    node = process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING", "")
                except psutil.Error:
                    continue
                if node and node != FAKE_HEAD_NODE_ID:
                    found[node] = process
        return found

    def end(self) -> None:
        """Ends every process of the cluster and removes its folder."""
        for node in [*self.nodes, self.process]:
            if node.poll() is None:
                kill_tree(psutil.Process(node.pid))
            node.wait()
        for process in psutil.process_iter(["cmdline"]):  # what had lost its parent
            if any(self.folder in part for part in process.info["cmdline"] or []):
                kill_tree(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ray_start(self, options: list[str], more: dict[str, str]) -> subprocess.Popen[bytes]:
        self._starts += 1
        ray = Path(sys.executable).with_name("ray")
        command = ["bash", "-c", _RAY_START, "bash", f"{self.folder}/start{self._starts}.log", str(ray), "start", "--block"]
        command += ["--disable-usage-stats", *options]
        return subprocess.Popen(command, env=self.environment(self.token) | more, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Watch:
    """Keeps the nodes of a cluster over time: (seconds, CPU nodes, GPU nodes), one entry a change."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int, int]] = []
        self._stop, self._started = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def now(self) -> tuple[int, int]:
        import ray  # here: it reads its authentication mode when it is imported

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum("GPU" in node for node in nodes)
        return sum("CPU" in node for node in nodes) - gpus, gpus

    def _look(self) -> None:
        while not self._stop.wait(0.2):
            found = self.now()
            if not self.seen or self.seen[-1][1:] != found:
                self.seen.append((time.monotonic() - self._started, *found))

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def until(self, wanted: tuple[int, int], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        # Reached, and seen by the thread that keeps the record: its look may come later than ours.
        while self.now() != wanted or not self.seen or self.seen[-1][1:] != wanted:
            assert time.monotonic() < end, f"never {wanted}: {self.seen}"
            time.sleep(0.2)


def autoscaling(node_types: dict[str, dict[str, int]], max_nodes: int, idle_s: float, gcs_address: str) -> dict[str, Any]:
    """Returns the configuration of an autoscaler whose nodes are processes of this machine, their GPUs numbers only."""
    types: dict[str, Any] = {
        name: {
            "resources": resources,
            "labels": {"llmkt-pool": "gpu"} if "GPU" in resources else {},  # as the recipes under cluster/ do
            "node_config": {},
            "min_workers": 0,
            "max_workers": max_nodes,
        }
        for name, resources in node_types.items()
    }
    types["ray.head.default"] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    return {
        "cluster_name": "fake",
        "max_workers": max_nodes * len(node_types),
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": module,
            "gcs_address": gcs_address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
        },
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }
