"""Which control arms are possible in a study, said by name before anything starts (METHOD.md, section 4)."""

from collections.abc import Iterator, Sequence

from llmkt_ray.study import INPUT_ARMS, Arm, ModelConfig, ReductionConfig, StudyConfig
from llmkt_ray.training.bridge.user_tables import UserTable
from llmkt_ray.training.inputs import input_problem

CONSTANT_LOSSES = ("mse", "rmse", "rmse_plain")
"""Losses with a target that is the same for everybody: the others compare directions or users, of which a constant has none."""


def source_problems(study: StudyConfig) -> Iterator[str]:
    """Yields the controls that the study's losses or profiles make impossible."""
    arms = arms_of(study)
    if "constant" in arms:
        for loss in study.transfer.loss:
            if loss not in CONSTANT_LOSSES:
                yield (
                    f"control 'constant' is impossible with loss {loss!r}: everybody has the same target, and this loss compares users or "
                    f"directions; leave 'constant' out of `controls`, or use a loss of {', '.join(CONSTANT_LOSSES)}"
                )
    for profiles in study.profiles:
        if "template" in arms and profiles.llm == "template":
            yield (
                f"control 'template' is impossible with profiles {profiles.label!r}: they are the template themselves, so it would be the "
                "treated arm again; leave 'template' out of `controls`, or these profiles out of `profiles`"
            )
        if "leaked" in arms and profiles.llm == "file":
            yield (
                f"control 'leaked' is impossible with profiles {profiles.label!r}: texts of a file cannot be written again from all "
                "ratings; leave 'leaked' out of `controls`, or use profiles that the study writes (vllm, vllm-sync, openai, template)"
            )


def input_problems(study: StudyConfig, model: ModelConfig, tables: Sequence[UserTable]) -> Iterator[str]:
    """Yields the input arms that a model or the targets' width makes impossible."""
    for arm in study.controls_of(model):
        if arm in INPUT_ARMS:
            for reduction in study.reduction:
                problem = input_problem(arm, model.name, tables, input_dims(reduction, tables))
                if problem:
                    yield problem


def input_dims(reduction: ReductionConfig, tables: Sequence[UserTable]) -> int:
    """Returns the width of the targets that an input arm reads: of the user table where `dims` is "layer"; 0 without a table."""
    return reduction.dims if isinstance(reduction.dims, int) else tables[0].width if tables else 0


def arms_of(study: StudyConfig) -> tuple[Arm, ...]:
    """Returns every control arm that some model of the study has."""
    return tuple(dict.fromkeys(arm for model in study.models for arm in study.controls_of(model)))
