import pytest
import ray

from llmkt_ray.sweep.cluster import cluster


@pytest.fixture(scope="module")
def two_workers():
    """A real local cluster of two logical CPUs, shared by the tests of a module; its token is gone from the environment afterwards."""
    with cluster(num_cpus=2):
        yield
    assert not ray.is_initialized()


@pytest.fixture(params=["loop", "ray"])
def executor(request):
    """Both executors: what the test says must hold for each."""
    if request.param == "ray":
        request.getfixturevalue("two_workers")
    return request.param
