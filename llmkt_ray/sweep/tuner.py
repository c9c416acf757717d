"""The executor on Ray: artifacts as tasks, trials through Ray Tune on reused actors.

Tune schedules, packs and retries; what is done is in the ledger alone. A Tuner gets at most 500 trials, because Tune
keeps each in memory and its snapshots grow with them. A worker that dies is replaced and its trial goes on from the
checkpoint named by its key; a trial whose workers keep dying becomes a failed row.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import ray
from ray import tune

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.errors import LlmktError, ResourceError, StorageError
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study import ResourcesConfig
from llmkt_ray.sweep.cluster import capacity, resources_of
from llmkt_ray.sweep.execute import Workplace, execute, failed
from llmkt_ray.sweep.pipeline import EmbeddingNode, Node, ProfileNode
from llmkt_ray.sweep.progress import Progress, describe
from llmkt_ray.training.spec import TrialResult, TrialSpec

TUNER_TRIALS = 500
MAX_FAILURES = 3
"""How often a trial's worker may die before the trial becomes a failed row."""


class RayExecutor:
    """Computes artifacts as Ray tasks and runs trials through Ray Tune.

    Args:
        resources: what trials ask of Ray, and how many may run at once.
    """

    name = "ray"

    def __init__(self, resources: ResourcesConfig) -> None:
        self._resources = resources

    def workers(self) -> int:
        """Returns how many trials the cluster can hold at once, at most `resources.concurrency`."""
        there = capacity()
        fits = min(int(there.get(name, 0) / share + 1e-9) for name, share in resources_of(self._resources.trial).items())
        return max(1, min(fits, self._resources.concurrency or fits))

    def compute(self, nodes: Sequence[Node], store: ArtifactStore, progress: Progress) -> None:
        """Makes the artifacts of one stage, independent of each other, as parallel tasks.

        Profiles and embeddings are driven from here, because they start actor pools of their own.

        Raises:
            LlmktError: a node cannot be computed.
        """
        for node in nodes:
            if isinstance(node, ProfileNode):
                node.compute(store)
            elif isinstance(node, EmbeddingNode):
                node.compute(store, workers=max(1, int(capacity().get("CPU", 1))))
            else:
                continue
            progress.artifact_made(node.label)
        waiting = {_compute.remote(node, store): node for node in nodes if not isinstance(node, ProfileNode | EmbeddingNode)}
        while waiting:
            ready, _ = ray.wait(list(waiting))
            for reference in ready:
                node = waiting.pop(reference)
                problem = ray.get(reference)
                if problem is not None:
                    raise problem
                progress.artifact_made(node.label)

    def run(self, specs: Sequence[TrialSpec], place: Workplace, progress: Progress) -> None:
        """Runs the trials; afterwards each has its row.

        Raises:
            StorageError: a row cannot be written.
            ResourceError: a trial asks for more than any node has.
        """
        for begin in range(0, len(specs), TUNER_TRIALS):
            self._run_batch(specs[begin : begin + TUNER_TRIALS], place, progress)

    def _run_batch(self, specs: Sequence[TrialSpec], place: Workplace, progress: Progress) -> None:
        asked = resources_of(self._resources.trial)
        self._refuse_too_large(asked)
        trainable = tune.with_resources(tune.with_parameters(_train, specs=list(specs), place=place), tune.PlacementGroupFactory([asked]))
        watcher = _Watcher(specs, progress)
        with tempfile.TemporaryDirectory(prefix="llmkt-tune-") as scratch:
            results = tune.Tuner(
                trainable,
                param_space={"index": tune.grid_search(list(range(len(specs))))},
                tune_config=tune.TuneConfig(
                    reuse_actors=True,
                    max_concurrent_trials=self._resources.concurrency,
                    trial_name_creator=lambda trial: describe(specs[trial.config["index"]]).replace(" ", "_").replace("/", "-"),
                    trial_dirname_creator=lambda trial: specs[trial.config["index"]].key,
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=scratch,
                    verbose=0,
                    stop=_StopAll(watcher),
                    failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                    callbacks=[watcher],
                ),
            ).fit()
        if watcher.storage_problem:
            raise StorageError(watcher.storage_problem)
        ledger = Ledger(place.folder)
        errors = {result.path.rsplit("/", 1)[-1]: result.error for result in results if result.error is not None}
        for spec in specs:
            if not ledger.has(spec.key):
                last = f"; last: {errors[spec.key]}" if spec.key in errors else ""
                message = f"the worker was lost {MAX_FAILURES + 1} times, for example killed or out of memory{last}"
                ledger.record(failed(spec, "WorkerLost", message), place.study_key)

    @staticmethod
    def _refuse_too_large(asked: dict[str, float]) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= share for name, share in asked.items()) for node in nodes):
            shown = ", ".join(f"{name} {share:g}" for name, share in asked.items())
            most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in asked}
            largest = ", ".join(f"{name} {value:g}" for name, value in most.items())
            raise ResourceError(f"a trial asks for {shown}, but the largest node has {largest}; lower `resources.trial` or add such a node")


def _train(config: dict[str, Any], specs: list[TrialSpec], place: Workplace) -> None:
    """Runs one trial in a Tune worker; a retry after the row was written has nothing left to do."""
    spec = specs[config["index"]]
    if Ledger(place.folder).has(spec.key):
        tune.report({"status": "done"})
        return
    try:
        result = execute(spec, place)
    except StorageError as error:
        tune.report({"status": "storage", "message": str(error)})
        return
    tune.report({"status": result.status, "error": dict(result.error) if result.error else None})


@ray.remote(num_cpus=1, max_retries=3)
def _compute(node: Node, store: ArtifactStore) -> LlmktError | None:
    """Makes one artifact; an error that the user can mend comes back as a value, without Ray's wrapping."""
    try:
        node.compute(store)
    except LlmktError as error:
        return error
    return None


class _Watcher(tune.Callback):
    """Feeds the progress from Tune's events.

    Attributes:
        storage_problem: why a row or checkpoint could not be written; a full disk ends the sweep, not one trial.
    """

    def __init__(self, specs: Sequence[TrialSpec], progress: Progress) -> None:
        self._specs, self._progress = specs, progress
        self.storage_problem: str | None = None

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        """Tune pickles its callbacks into a state that nobody reads: the terminal stays out of it."""
        return (tune.Callback, ())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Counts a trial as running."""
        self._progress.trial_started(self._specs[trial.config["index"]])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Notes a storage that cannot be written."""
        if result.get("status") == "storage":
            self.storage_problem = result["message"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Counts a trial as done, or as failed with its reason."""
        spec, last = self._specs[trial.config["index"]], trial.last_result or {}
        if last.get("status") in ("done", "failed"):
            self._progress.trial_ended(spec, TrialResult(spec=spec, status=last["status"], error=last.get("error")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Counts a trial as lost."""
        self._progress.trial_ended(self._specs[trial.config["index"]], None)


class _StopAll(tune.Stopper):
    """Ends the Tuner when the storage cannot be written."""

    def __init__(self, watcher: _Watcher) -> None:
        self._watcher = watcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Leaves single trials alone."""
        return False

    def stop_all(self) -> bool:
        """Says whether all trials are to end."""
        return self._watcher.storage_problem is not None
