"""Which control arms are possible in a study, said by name before anything starts (METHOD.md, section 4)."""

from collections.abc import Iterator, Sequence

from llmkt_ray.embeddings.encode_knowledge import encoder_problem
from llmkt_ray.errors import LlmktError
from llmkt_ray.profiles.items import item_texts_key
from llmkt_ray.study import KAR_ARMS, TABLE_ARMS, ModelConfig, ReductionConfig, StudyConfig
from llmkt_ray.training.bridge.knowledge import knowledge_problem
from llmkt_ray.training.bridge.models import class_of
from llmkt_ray.training.bridge.registry import ModelEntry
from llmkt_ray.training.bridge.user_tables import UserTable
from llmkt_ray.training.inputs import input_problem

CONSTANT_LOSSES = ("mse", "rmse", "rmse_plain")
"""Losses with a target that is the same for everybody: the others compare directions or users, of which a constant has none."""


def source_problems(study: StudyConfig) -> Iterator[str]:
    """Yields the controls that the study's losses or profiles make impossible."""
    arms = study.arms
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
        if arm in TABLE_ARMS:
            for reduction in study.reduction:
                problem = input_problem(arm, model.name, tables, input_dims(reduction, tables))
                if problem:
                    yield problem


def input_dims(reduction: ReductionConfig, tables: Sequence[UserTable]) -> int:
    """Returns the width of the targets that an input arm reads: of the user table where `dims` is "layer"; 0 without a table."""
    return reduction.dims if isinstance(reduction.dims, int) else tables[0].width if tables else 0


def known_class(model: ModelConfig, *, allow_code: bool) -> tuple[type, ModelEntry] | None:
    """Returns a model's class with its entry; None where it may not be imported or cannot be, which is told elsewhere."""
    try:
        return class_of(model.name, model.class_path) if allow_code or model.class_path is None else None
    except LlmktError:
        return None


def labelled_problems(study: StudyConfig, *, allow_code: bool) -> Iterator[str]:
    """Yields what cannot be measured on rows with labels (protocol `labelled`)."""
    if study.evaluation.protocol != "labelled":
        return
    for model in study.models:
        found = known_class(model, allow_code=allow_code)
        entry = found[1] if found else None
        if entry is not None and not entry.is_reference and entry.batches != "pointwise":
            yield (
                f"model {model.name!r} cannot be measured under protocol 'labelled': it learns from {entry.batches} and gives no "
                "probabilities; use a context-aware model or NeuMF or DMF, or protocol 'full'"
            )
    for name in study.evaluation.references:
        yield (
            f"reference {name!r} ranks and gives no probabilities, so protocol 'labelled' cannot measure it: set evaluation.references: []"
        )
    for dataset in study.datasets:
        if dataset.positive.rating_at_least is None:
            yield (f"protocol 'labelled' needs rows of both kinds, but all of {dataset.name!r} are positives; set positive.rating_at_least")


def kar_problems(study: StudyConfig, *, allow_code: bool) -> Iterator[str]:
    """Yields what makes the arms of KAR impossible: models without features, encoders without one space, item texts."""
    asked = [(arm, model) for model in study.models for arm in study.controls_of(model) if arm in KAR_ARMS]
    for arm, model in asked:
        found = known_class(model, allow_code=allow_code)
        if found is not None:
            problem = knowledge_problem(arm, model.name, [base.__name__ for base in found[0].__mro__])
            if problem:
                yield problem
    if asked:
        for embedding in study.embedding:
            problem = encoder_problem(embedding)
            if problem:
                yield problem
        try:
            item_texts_key(study.kar.items, "check", study.seed)
        except LlmktError as error:
            yield str(error)
