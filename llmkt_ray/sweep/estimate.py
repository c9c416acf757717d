"""How long a study may take: by its own finished trials where there are any, else by rough constants."""

from collections.abc import Sequence

import pandas as pd

from llmkt_ray.sweep.plan import Plan
from llmkt_ray.training.spec import TrialSpec

EPOCH_S = 0.4
"""Seconds of one core an epoch and a hundred thousand interactions. The quickstart's settings took .25 to .3 for MultiVAE, .35 to
.45 for NeuMF and 1.2 to 1.3 for SimpleX on ml-100k: a rough guess, replaced by a study's own trials as soon as there are any."""
SETUP_S = 1.0
"""Seconds a trial beside its epochs."""
ROWS_UNKNOWN = 100_000
"""Interactions assumed for a dataset that has not been read yet."""


def estimate_s(plan: Plan, specs: Sequence[TrialSpec], finished: pd.DataFrame) -> float:
    """Returns the seconds of one core that the trials `specs` may take.

    Args:
        plan: the plan, for the sizes of its datasets.
        specs: the trials to do.
        finished: the ledger's trials; those of the same dataset and model tell best.
    """
    known: dict[tuple[str, str], float] = {}
    if "wall_s" in finished:
        done = finished[finished["status"] == "done"]
        known = {(str(d), str(m)): float(s) for (d, m), s in done.groupby(["dataset", "model"])["wall_s"].mean().items()}
    sizes = {split.config.name: ROWS_UNKNOWN for split in plan.splits}
    return sum(known.get((spec.dataset, spec.model), _guess_s(spec, sizes[spec.dataset])) for spec in specs)


def _guess_s(spec: TrialSpec, rows: int) -> float:
    return SETUP_S + (0 if spec.arm == "reference" else spec.epochs * EPOCH_S * rows / 100_000)
