"""A reference line does not depend on the threads of its process."""

from threadpoolctl import threadpool_info, threadpool_limits

from llmkt_ray.training.isolation import isolated


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_linear_algebra_of_a_trial_is_on_one_thread_whatever_torch_may_use() -> None:
    with threadpool_limits(4, user_api="blas"):
        with isolated(device="cpu", threads=2):
            assert blas_threads() == {1}
        assert blas_threads() == {4}
