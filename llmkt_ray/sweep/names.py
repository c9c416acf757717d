"""A trial's name for people: in progress lines, logs, Tune's tables and TensorBoard's list."""

import re

from llmkt_ray.training.spec import TrialSpec

_PLAIN = re.compile(r"[^A-Za-z0-9._=-]+")
TELLING = ("llm", "encoder", "reduction", "dims", "train_share", "split_repetition")
"""Factors that are part of a name where they are not the usual value."""
USUAL = {"train_share": 1.0, "split_repetition": 0}


def describe(spec: TrialSpec) -> str:
    """Returns a trial's readable name: dataset, model, arm, alpha, layer, seed."""
    alpha = f" {spec.alpha:g}" if spec.layer else ""
    layer = f" at {spec.layer}" if spec.layer else ""
    return f"{spec.dataset} {spec.model} {spec.arm}{alpha}{layer} seed {spec.seed_index}"


def file_name(spec: TrialSpec) -> str:
    """Returns a name that is a plain file name and differs for different trials: readable parts, then the trial's key.

    Text from a study (labels, encoders) is reduced to letters, digits, `.`, `_`, `=` and `-`: it never becomes a path.
    """
    factors = [str(spec.factors[name]) for name in TELLING if spec.factors.get(name) not in (None, USUAL.get(name))]
    schedule = [] if spec.schedule.kind == "two_phase" else [spec.schedule.kind]
    parts = [describe(spec), *factors, *schedule]
    readable = _PLAIN.sub("-", " ".join(parts).replace("/", "-")).strip("-.")
    return f"{readable[:160]}-{spec.key[:8]}"
