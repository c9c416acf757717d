"""Whether the cluster grows by itself, and whether it could ever hold a trial; read from what its autoscaler tells the cluster."""

import json
import time
from typing import Any

import ray
from ray.core.generated import autoscaler_pb2

NOT_A_GPU_NODE = {"llmkt-pool": "!gpu"}
"""What tasks without a GPU ask of a node that an autoscaler starts. The recipes under `cluster/` label their GPU nodes so: a waiting
trial that needs CPUs alone would otherwise start them too, and keep them from going back to zero."""
LOOKS = 3
"""How often the autoscaler must have looked at what waits before its silence counts."""
PATIENCE_S = 60.0


def can_grow() -> bool:
    """Says whether an autoscaler adds nodes to this cluster when something waits for them."""
    if _state() is not None:
        return True
    status = _gcs().internal_kv_get(b"__autoscaling_status", namespace=None)
    try:
        active = json.loads(status)["autoscaler_report"]["active_nodes"] if status else {}
    except (ValueError, KeyError, TypeError):
        return False
    # Ray's first autoscaler reports on every cluster; where nobody told it of node types, each node is a type of its own.
    return any(not str(kind).startswith("node_") for kind in active or {})


def selector(asked: dict[str, float]) -> dict[str, str]:
    """Returns the labels that a task which asks for these resources wants of its node."""
    return NOT_A_GPU_NODE if not asked.get("GPU") and can_grow() else {}


def never_fits(asked: dict[str, float]) -> bool:
    """Says whether the autoscaler knows no kind of node that holds `asked`; False where it says nothing of the kind.

    Args:
        asked: resources of one trial, by Ray's names.
    """
    waiting = ray.util.placement_group([asked], bundle_label_selector=[selector(asked)])
    seen: set[int] = set()
    try:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and not waiting.wait(0.5):
            state = _state()
            if state is None:
                return False  # the first autoscaler does not tell
            refused = [request for gang in state.infeasible_gang_resource_requests for request in gang.requests]
            if any(dict(request.resources_bundle) == asked for request in refused):
                return True
            seen.add(state.last_seen_cluster_resource_state_version)
            if len(seen) > LOOKS:
                return False
        return False
    finally:
        ray.util.remove_placement_group(waiting)


def _state() -> Any:
    """Returns what Ray's second autoscaler told the cluster last, or None where there is none."""
    reply = autoscaler_pb2.GetClusterStatusReply.FromString(_gcs().get_cluster_status())
    return reply.autoscaling_state if reply.HasField("autoscaling_state") else None


def _gcs() -> Any:
    return ray._private.worker.global_worker.gcs_client
