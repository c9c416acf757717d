"""Nothing twice: of the trials that share a phase 1, one computes it and the others wait until they can go on from its end."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmkt_ray.training.spec import TrialSpec


class SharedPhases:
    """Which trials of a batch share a phase 1, and which of those that wait may start.

    Args:
        specs: the batch.
        folder: where the ends of phase 1 are kept.
        is_seen: whether the driver sees that folder of every worker. With results in an object store each machine has its own: no
            trial waits then, and one takes over a phase 1 if its machine has it already.
    """

    def __init__(self, specs: Sequence[TrialSpec], folder: Path, *, is_seen: bool = True) -> None:
        self._folder, self._is_seen = folder, is_seen
        self._keys = {spec.key: spec.phase1_key for spec in specs}
        counts = Counter(key for key in self._keys.values() if key is not None)
        self._shared = {key for key, count in counts.items() if count > 1}

    def of(self, spec: TrialSpec) -> str | None:
        """Returns the key of the phase 1 that a trial shares with others, None if with none."""
        key = self._keys.get(spec.key)
        return key if key in self._shared else None

    def ready(self, waiting: Iterable[TrialSpec], running: Iterable[TrialSpec]) -> TrialSpec | None:
        """Returns the first trial whose phase 1 no running trial is about to compute; None if there is none."""
        if not self._shared or not self._is_seen:
            return next(iter(waiting), None)
        busy = {key for key in map(self.of, running) if key is not None and not (self._folder / f"{key}.pt").exists()}
        return next((spec for spec in waiting if self.of(spec) not in busy), None)
