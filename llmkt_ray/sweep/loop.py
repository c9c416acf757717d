"""The executor without Ray: one trial after the other, in this process."""

from collections.abc import Iterator, Sequence

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.sweep.execute import Workplace, execute
from llmkt_ray.sweep.phase1 import SharedPhases
from llmkt_ray.sweep.pipeline import Node, TextsNode
from llmkt_ray.sweep.progress import Progress
from llmkt_ray.training.spec import TrialSpec


class LoopExecutor:
    """Computes artifacts and runs trials in a plain loop."""

    name = "loop"

    def compute(self, nodes: Sequence[Node], store: ArtifactStore, progress: Progress) -> None:
        """Makes the artifacts, in order.

        Raises:
            LlmktError: a node cannot be computed.
        """
        for node in nodes:
            if isinstance(node, TextsNode):
                node.compute(store, progress.texts(node.label))
            else:
                node.compute(store)
            progress.artifact_made(node.label)

    def run(self, batches: Iterator[Sequence[TrialSpec]], place: Workplace, progress: Progress) -> None:
        """Runs batches of trials; each is asked for when the one before it is finished, and then every trial has its row.

        Raises:
            StorageError: a row cannot be written, or the folder is another run's by now.
        """
        for batch in batches:
            phases = SharedPhases(batch, place.phase1)
            for place_in_batch, spec in enumerate(batch):
                if progress.meter.spent():
                    progress.meter.left_out += len(batch) - place_in_batch
                    break
                progress.hold.check()
                progress.trial_started(spec)
                progress.trial_ended(spec, execute(spec, place, shares_phase1=phases.of(spec) is not None))
