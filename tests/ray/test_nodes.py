"""A cluster of several nodes: all that may run trials must see the results folder."""

import pytest
import ray
from ray.cluster_utils import Cluster

from llmkt_ray.errors import ResourceError
from llmkt_ray.profiles.engines.own_ray import own_token
from llmkt_ray.results.folder import locked
from llmkt_ray.sweep import cluster


@pytest.fixture
def other_node():
    """The id of the second node of a cluster of two, which this process has joined."""
    with own_token():
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            other = nodes.add_node(num_cpus=1)
            ray.init(address=nodes.address, log_to_driver=False)
            yield other.node_id
        finally:
            ray.shutdown()
            nodes.shutdown()


def test_a_node_that_does_not_see_the_results_is_named_before_anything_starts(tmp_path, other_node, monkeypatch):
    """All nodes of this machine see all of it, so the second one is asked for a file of its own."""
    folder = str(tmp_path / "results" / "tiny")
    with locked(folder):
        cluster.refuse_unseen(folder)
        look = cluster._sees

        def blind(file, content):
            elsewhere = ray.get_runtime_context().get_node_id() == other_node
            return look(f"{file}.elsewhere" if elsewhere else file, content)

        monkeypatch.setattr(cluster, "_sees", blind)
        with pytest.raises(ResourceError, match=r"is a folder that 1 of 2 nodes do not see \(\S+\), .* an object store"):
            cluster.refuse_unseen(folder)
    cluster.refuse_unseen("s3://bucket/results/tiny")


def test_a_file_of_another_run_is_not_this_one_s(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)
    (tmp_path / "run.json").write_text("another")
    assert not cluster._sees(str(tmp_path / "run.json"), b"this")
    assert cluster._sees(str(tmp_path / "run.json"), b"another")
