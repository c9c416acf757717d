"""The executor on Ray: artifacts as tasks, trials through Ray Tune on reused actors.

Tune schedules and packs; what is done is in the ledger alone. A Tuner gets at most 500 trials, because Tune keeps each in
memory and its snapshots grow with them. A trial whose worker dies is given out again and goes on from the checkpoint named by
its key; a trial whose workers keep dying at the same place becomes a failed row.
"""

import logging
import os
import shutil
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.errors import LlmktError, ResourceError, StorageError
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study import ResourcesConfig
from llmkt_ray.sweep.autoscaling import can_grow, never_fits, selector
from llmkt_ray.sweep.cluster import capacity, resources_of
from llmkt_ray.sweep.ends import SELF_DRIVEN, named
from llmkt_ray.sweep.execute import Workplace, execute, failed
from llmkt_ray.sweep.journal import log_as_json
from llmkt_ray.sweep.names import file_name
from llmkt_ray.sweep.phase1 import SharedPhases
from llmkt_ray.sweep.pipeline import Node, TextsNode
from llmkt_ray.sweep.progress import Progress
from llmkt_ray.sweep.spare import SpareCheckpoint
from llmkt_ray.sweep.tune_memory import killed_for_memory_is_lost
from llmkt_ray.training.spec import TrialResult, TrialSpec

TUNER_TRIALS = 500
GROWING_ENCODERS = 4
FINISHED: str = tune.search.Searcher.FINISHED
MAX_FAILURES = 3
"""How often a trial's worker may die at the same checkpoint before the trial becomes a failed row. A long trial whose nodes are taken again
and again gets further each time and is never given up; one that kills its workers does not."""


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
            if not isinstance(node, SELF_DRIVEN):
                continue
            with named(node):
                if isinstance(node, TextsNode):
                    node.compute(store, progress.texts(node.label))
                else:
                    node.compute(store, workers=self._encoders())
            progress.artifact_made(node.label)
        compute = _compute.options(label_selector=selector({"CPU": 1}))
        waiting = {compute.remote(node, store): node for node in nodes if not isinstance(node, SELF_DRIVEN)}
        while waiting:
            ready, _ = ray.wait(list(waiting))
            for reference in ready:
                node = waiting.pop(reference)
                with named(node):
                    problem = ray.get(reference)
                if problem is not None:
                    raise problem
                progress.artifact_made(node.label)

    @staticmethod
    def _encoders() -> int:
        """Returns how many encoder actors to ask for: one a CPU that is there, and a few where CPUs come when asked for."""
        there = int(capacity().get("CPU", 0))
        return max(there, GROWING_ENCODERS if can_grow() else 1)

    def run(self, batches: Iterator[Sequence[TrialSpec]], place: Workplace, progress: Progress) -> None:
        """Runs batches of trials; each is asked for when the one before it is finished, and then every trial has its row.

        Raises:
            StorageError: a row cannot be written, or the folder is another run's by now.
            ResourceError: a trial asks for more than any node has.
        """
        asked = resources_of(self._resources.trial)
        self._refuse_too_large(asked)
        bundle = tune.PlacementGroupFactory([asked], bundle_label_selector=[selector(asked)])
        trainable = tune.with_resources(tune.with_parameters(_train, place=place), bundle)
        queue, scratch = _Queue(_small(batches)), Path(place.scratch) / "tune"
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # it would list trials that went on elsewhere as incomplete
        while queue.refill():
            if progress.meter.spent():
                progress.meter.left_out += queue.drop()
                continue
            feed = _Feed(queue, place, progress, self._resources.concurrency)
            try:
                with killed_for_memory_is_lost():
                    tune.Tuner(
                        trainable,
                        tune_config=tune.TuneConfig(
                            search_alg=feed,
                            num_samples=-1,
                            reuse_actors=True,
                            trial_name_creator=lambda trial: file_name(_spec(trial.config)),
                            trial_dirname_creator=lambda trial: _spec(trial.config).key,
                        ),
                        run_config=tune.RunConfig(
                            name="trials",
                            storage_path=str(scratch),
                            verbose=0,
                            stop=_StopAll(feed),
                            failure_config=tune.FailureConfig(max_failures=0),  # the feed gives lost trials out again
                            callbacks=[_Watcher(progress, feed)],
                        ),
                    ).fit()
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            if feed.problem:
                raise feed.problem

    @staticmethod
    def _refuse_too_large(asked: dict[str, float]) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= share for name, share in asked.items()) for node in nodes):
            return
        shown = ", ".join(f"{name} {share:g}" for name, share in asked.items())
        if not can_grow():
            most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in asked}
            largest = ", ".join(f"{name} {value:g}" for name, value in most.items())
            raise ResourceError(f"a trial asks for {shown}, but the largest node has {largest}; lower `resources.trial` or add such a node")
        if never_fits(asked):
            raise ResourceError(
                f"a trial asks for {shown}, but no kind of node that the cluster's autoscaler may start has as much; "
                "lower `resources.trial`, or give the cluster such a kind of node"
            )


def _spec(config: Mapping[str, Any]) -> TrialSpec:
    """Returns the trial of a Tune configuration."""
    return TrialSpec.model_validate_json(config["spec"])


def _train(config: dict[str, Any], place: Workplace) -> None:
    """Runs one trial in a Tune worker; a retry after the row was written has nothing left to do."""
    log_as_json()
    spec = _spec(config)
    try:
        if Ledger(place.folder).has(spec.key):
            tune.report({"status": "done"})
            return
        result = execute(spec, place, shares_phase1=config["shares_phase1"])
    except StorageError as error:
        tune.report({"status": "storage", "message": str(error)})
        return
    except Exception as error:  # noqa: BLE001 - around the trial, not in it: its row could not be written here
        told = {"kind": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        tune.report({"status": "broken", "error": told})
        return
    if result.status == "failed" and place.device == "cuda" and _cuda_is_broken():
        os._exit(1)  # the row is written: the feed finds it, and Tune starts a fresh process
    tune.report({"status": result.status, "error": dict(result.error) if result.error else None})


def _cuda_is_broken() -> bool:
    """Says whether this process's CUDA context is lost, after a kernel that failed: every later trial in it would fail in no time."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@ray.remote(num_cpus=1, max_retries=3)  # type: ignore[untyped-decorator]
def _compute(node: Node, store: ArtifactStore) -> LlmktError | None:
    """Makes one artifact; an error that the user can mend comes back as a value, without Ray's wrapping."""
    try:
        node.compute(store)
    except LlmktError as error:
        return error
    return None


def _small(batches: Iterator[Sequence[TrialSpec]]) -> Iterator[Sequence[TrialSpec]]:
    """Yields the batches in pieces of at most `TUNER_TRIALS`."""
    for batch in batches:
        for begin in range(0, len(batch), TUNER_TRIALS):
            yield batch[begin : begin + TUNER_TRIALS]


class _Queue:
    """The trials that wait, and the batches behind them; outlives the Tuners that empty it."""

    def __init__(self, batches: Iterator[Sequence[TrialSpec]]) -> None:
        self._batches = batches
        self.waiting: deque[TrialSpec] = deque()

    def refill(self) -> bool:
        """Takes the next batch if nothing waits; says whether anything waits now."""
        while not self.waiting:
            batch = next(self._batches, None)
            if batch is None:
                return False
            self.waiting.extend(batch)
        return True

    def drop(self) -> int:
        """Forgets what waits of the batch, the pieces of it that have not been taken included; returns how many trials that were."""
        dropped = len(self.waiting)
        self.waiting.clear()
        return dropped


class _Feed(tune.search.Searcher):  # type: ignore[misc]
    """Gives one Tuner its batch of trials.

    The next batch gets a Tuner of its own: it may need artifacts first, and those need the CPUs that idle trial actors hold.
    A trial whose worker is lost waits in the queue again. Tune's own retries are off: where a reused worker is lost between two
    trials it retries the trial and also gives it up, and where one is still busy it gives it up without telling its searcher
    (Ray 2.60, `_actor_failed` and `_on_trial_reset` of its controller). Only a node that is taken away in order (a spot node)
    leaves its trials to Tune, which does not count that as a failure.

    Attributes:
        problem: what ends the whole sweep: a storage that cannot be written, or is another run's by now.
    """

    def __init__(self, queue: _Queue, place: Workplace, progress: Progress, concurrency: int | None) -> None:
        super().__init__()
        self._queue, self._place, self._progress = queue, place, progress
        self._concurrency, self._running = concurrency, dict[str, TrialSpec]()
        self._lost, self._reached = Counter[str](), dict[str, int | None]()
        self._phases = SharedPhases(tuple(queue.waiting), place.phase1, is_seen="://" not in place.folder)
        self.problem: LlmktError | None = None

    def __reduce__(self) -> tuple[type[tune.search.Searcher], tuple[()]]:
        """Tune pickles its searcher into a state that nobody reads: the ledger is the state."""
        return (tune.search.Searcher, ())

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accepts that there is no space: trials are given, not drawn."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Returns the next trial, None to be asked again later, or FINISHED."""
        if self._queue.waiting and self._progress.meter.spent():
            self._progress.meter.left_out += self._queue.drop()
        self.problem = self.problem or self._progress.hold.lost
        if self.problem or (not self._queue.waiting and not self._running):
            return FINISHED
        if not self._queue.waiting or (self._concurrency and len(self._running) >= self._concurrency):
            return None
        spec = self._phases.ready(self._queue.waiting, self._running.values())
        if spec is None:
            return None
        self._queue.waiting.remove(spec)
        self._running[trial_id] = spec
        return {"spec": spec.model_dump_json(), "shares_phase1": self._phases.of(spec) is not None}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Notes a storage that cannot be written: a full disk ends the sweep, not one trial."""
        if result.get("status") == "storage":
            self.problem = StorageError(result["message"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Counts a trial; one whose worker was lost waits again, and gets its row here when that happened too often."""
        spec = self._running.pop(trial_id, None)
        if spec is None or self.problem:
            return
        last = result or {}
        if last.get("status") not in ("done", "failed", "pruned"):
            try:
                ended = self._ended(spec, last.get("error") or {})
            except StorageError as storage:
                self.problem = storage
                return
            if ended is None:
                self._progress.trial_interrupted(spec)
                self._queue.waiting.appendleft(spec)
                return
            last = ended
        self._progress.trial_ended(spec, TrialResult(spec=spec, status=last.get("status", "done"), error=last.get("error")))

    def _ended(self, spec: TrialSpec, error: Mapping[str, str]) -> dict[str, Any] | None:
        """Returns how a trial ended whose worker was lost or broke (then with its error), None if it is to be run again.

        Raises:
            StorageError: the row of a trial that is given up cannot be written.
        """
        ledger, spare = Ledger(self._place.folder), SpareCheckpoint(self._place.folder, self._place.checkpoints, spec.key)
        if ledger.has(spec.key):
            spare.delete()
            return {"status": "done"}
        reached = spare.written_ns()
        if not error and reached != self._reached.get(spec.key):
            self._reached[spec.key] = reached
            self._lost[spec.key] = 0
        self._lost[spec.key] += 1
        if self._lost[spec.key] <= MAX_FAILURES:
            return None
        times, kind = self._lost[spec.key], error.get("kind", "WorkerLost")
        told = (
            f"{error['message']} (outside of training; tried {times} times)"
            if error
            else f"its worker was lost {times} times before it got any further: killed, or out of memory (see `resources.trial`)"
        )
        ledger.record(failed(spec, kind, told, error.get("traceback", "")), self._place.study_key)
        spare.delete()
        return {"status": "failed", "error": {"kind": kind, "message": told}}

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing."""


class _Watcher(tune.Callback):  # type: ignore[misc]
    """Tells the progress when a trial really starts, and the feed of trials that Tune gives up without a word."""

    def __init__(self, progress: Progress, feed: _Feed) -> None:
        self._progress, self._feed = progress, feed

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        """Tune pickles its callbacks into a state that nobody reads."""
        return (tune.Callback, ())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Counts a trial as running."""
        self._progress.trial_started(_spec(trial.config))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Notes that a trial's node was taken away: it waits until Tune can go on with it elsewhere."""
        self._progress.trial_interrupted(_spec(trial.config))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tells the feed of every trial that Tune gave up; those that it knows of already change nothing."""
        for trial in trials:
            if trial.status == "ERROR":
                self._feed.on_trial_complete(trial.trial_id, error=True)


class _StopAll(tune.Stopper):  # type: ignore[misc]
    """Ends the Tuner at once when the sweep cannot go on."""

    def __init__(self, feed: _Feed) -> None:
        self._feed = feed

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Leaves single trials alone."""
        return False

    def stop_all(self) -> bool:
        """Says whether all trials are to end."""
        return self._feed.problem is not None
