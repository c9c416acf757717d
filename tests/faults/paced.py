"""`llmkt` whose epochs last at least `PACE_S`, so that a kill strikes in the middle of a study on any machine.

`python -m tests.faults.paced run STUDY …` is the real command; a trial of a hundred epochs takes two seconds however fast the machine.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

from llmkt_ray import api
from llmkt_ray.cli import main
from llmkt_ray.sweep.run import run_study
from llmkt_ray.training.spec import TrialArtifacts, TrialResult, TrialSpec
from llmkt_ray.training.trial import run_trial

PACE_S = 0.02


def paced(spec: TrialSpec, artifacts: TrialArtifacts, **settings: Any) -> TrialResult:
    """The real trial, with a rest after each epoch."""
    told: Callable[[dict[str, Any]], None] = settings.pop("on_epoch")

    def rest(row: dict[str, Any]) -> None:
        told(row)
        time.sleep(PACE_S)

    return run_trial(spec, artifacts, on_epoch=rest, **settings)


if __name__ == "__main__":
    api.run_study = functools.partial(run_study, run_trial=paced)
    main()
