"""The connection to Ray: a cluster of this process's own unless an address is given; quiet, private, offline."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmkt_ray.errors import ResourceError, token_refused
from llmkt_ray.profiles.engines.own_ray import on_loopback, own_token, ray, start_ray  # sets Ray's authentication before its import
from llmkt_ray.results.folder import HOLDER
from llmkt_ray.study import StudyConfig, TaskResources

_TOKEN_FILE = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger is the log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: it must end the run, not be swallowed with partial results
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # a trial's thread may take longer than Tune's 2 s to end on a busy machine: no worker is lost
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its core prints advice for its own developers between our progress lines
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

CONNECTION_TRIES = "2"
"""Tries to reach a head, a minute each: Ray's 20 would keep a driver for as many minutes where the head has died meanwhile."""
PATIENCE_S = 20.0
ANSWER_S = 60.0
"""A node that does not say in this time whether it sees the results folder is not waited for."""
PENDING_TRIALS = "200"
"""Trials that wait for a place at once on a cluster: an autoscaler adds nodes for what waits, and Tune lets one wait by default."""


def given_address() -> str | None:
    """Returns the address of a cluster that the environment names, or None."""
    return os.environ.get("RAY_ADDRESS") or None


@contextmanager
def cluster(address: str | None = None, num_cpus: int | None = None, dashboard: bool = False) -> Iterator[str | None]:
    """Connects to Ray for as long as the block lasts, and gives the dashboard's link; joins a connection that is there already.

    A local cluster listens on loopback and is guarded by a random token of this process, unless the environment sets RAY_AUTH_MODE or
    RAY_AUTH_TOKEN otherwise; a cluster at an address is met with the credentials of the environment.

    Args:
        address: a cluster's address; None: `RAY_ADDRESS`, or else a new local cluster.
        num_cpus: logical CPUs of a new local cluster; None: as many as there are.
        dashboard: whether a new local cluster has a dashboard, on loopback; its token is then that of the user's file, which a
            browser can be given, and not one of this process.

    Raises:
        ResourceError: the cluster cannot be reached or started.
    """
    # Before the look at who started Ray: Tune reads its settings in this process, whoever that was.
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield _dashboard_link()
        return
    address = address or given_address() or "local"
    local = address == "local"
    if not local:
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", PENDING_TRIALS)
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", CONNECTION_TRIES)
    guarded = local and os.environ.get("RAY_AUTH_MODE") == "token" and not os.environ.get("RAY_AUTH_TOKEN")
    if guarded and dashboard and not _TOKEN_FILE.exists():
        raise ResourceError(
            f"the dashboard needs a token to sign in with, and there is none in {_TOKEN_FILE}; make one with: ray get-auth-token --generate"
        )
    own = {"num_cpus": num_cpus, "include_dashboard": dashboard, "dashboard_host": "127.0.0.1"} if local else {}
    with own_token(guarded and not dashboard), on_loopback(local):
        if not local:
            _refuse_unusable(address)
        try:
            start_ray(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **own)
        except Exception as error:  # where a node does not come up in time, Ray raises a plain one
            raise ResourceError(f"Ray at {address!r} cannot be reached or started: {error}; run: llmkt doctor") from error
        try:
            yield _dashboard_link()
        finally:
            ray.shutdown()


def _refuse_unusable(address: str) -> None:
    """Returns if something at `host:port` answers and takes this process's token; an address of another form is left to Ray.

    Ray itself tries for a while, and then says in both cases that it cannot connect.

    Raises:
        ResourceError: nothing answers (a head that died, or a wrong port), or it refuses the token.
    """
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S).close()
    except OSError as error:
        raise ResourceError(f"no Ray head answers at {address!r} ({error}); start one, or mend --address or RAY_ADDRESS") from error
    try:
        ray._raylet.GcsClient(address=address)
    except ray.exceptions.AuthenticationError as error:
        raise token_refused(address, str(error)) from error
    except (ray.exceptions.RayError, RuntimeError, ValueError):
        return  # whatever else is wrong, Ray tells


def _dashboard_link() -> str | None:
    """Returns the address of the cluster's dashboard, or None where it has none."""
    found = ray._private.worker._global_node and ray._private.worker.get_dashboard_url()
    return f"http://{found}" if found else None


def refuse_unseen(folder: str) -> None:
    """Returns if every node that is there now and may run trials sees the results folder, where that is on a disk.

    Elsewhere its trials would fail, or leave rows where nobody looks for them. What is looked for is what says that this very run
    holds the folder: a node's own disk may have a folder of that name, of another run.

    Raises:
        ResourceError: with the nodes that do not.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if "://" in folder or len(nodes) < 2:
        return
    file = Path(folder) / HOLDER
    look, content, on = ray.remote(num_cpus=0)(_sees), file.read_bytes(), ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    asked = {
        look.options(scheduling_strategy=on(node["NodeID"], soft=False)).remote(str(file), content): node
        for node in nodes
        if node["Resources"].get("CPU")
    }
    unseen = []
    for answer in ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)[0]:
        with suppress(ray.exceptions.RayError):  # a node that is just being taken away
            if not ray.get(answer):
                unseen.append(asked[answer]["NodeManagerHostname"])
    if unseen:
        raise ResourceError(
            f"storage {str(Path(folder).parent)!r} is a folder that {len(unseen)} of {len(nodes)} nodes do not see ({', '.join(unseen)}), "
            "so their trials would leave no rows; give `storage` a folder that all nodes share, or an object store (s3://bucket/prefix)"
        )


def _sees(file: str, content: bytes) -> bool:
    """Says whether a file with this content is there; a network disk may show a new one a moment late."""
    for _ in range(10):
        with suppress(OSError):
            if Path(file).read_bytes() == content:
                return True
        time.sleep(0.5)
    return False


def capacity() -> dict[str, float]:
    """Returns the cluster's resources now: CPU, GPU, memory in bytes."""
    found: dict[str, float] = ray.cluster_resources()
    return found


def resources_of(task: TaskResources) -> dict[str, float]:
    """Returns what a task asks of Ray, by Ray's names."""
    asked = {"CPU": task.cpus}
    if task.gpus:
        asked["GPU"] = task.gpus
    return asked


def device_of(study: StudyConfig) -> str:
    """Returns the device of the study's trials: "cuda" where they ask for a GPU."""
    return "cuda" if study.resources.trial.gpus else "cpu"


def threads_of(study: StudyConfig) -> int:
    """Returns the torch threads of a trial: its whole CPUs, at least one."""
    return max(1, int(study.resources.trial.cpus))
