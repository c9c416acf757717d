"""Everything that is wrong with a study, at once and before anything expensive starts.

The schema has been read by `load_study`; here come the names (models, layers, metrics, losses, encoders, reducers), the
datasets and profiles, the machine, and the storage, in this order.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from llmkt_ray.artifacts import ArtifactStore, FileStore
from llmkt_ray.data.check import dataset_problems
from llmkt_ray.data.history import item_facts
from llmkt_ray.data.known import KNOWN
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.encoders import encoder_identity, encoder_width
from llmkt_ray.embeddings.reducers import REDUCERS, reduction_problem
from llmkt_ray.errors import LlmktError, ProfileError, StudyError, unknown_name
from llmkt_ray.profiles.engines.template import refuse_without_facts
from llmkt_ray.profiles.generate import check_stored, profiles_key
from llmkt_ray.results.folder import artifacts_folder, busy_problem, holder, owner_problem, study_folder, write_problem
from llmkt_ray.study import LANGUAGE_MODELS, TABLE_ARMS, DatasetConfig, ModelConfig, StudyConfig
from llmkt_ray.study_work import OWN_SETTINGS, TuningConfig, tried_of
from llmkt_ray.sweep.arms import input_problems, kar_problems, known_class, labelled_problems, source_problems
from llmkt_ray.sweep.mlflow_mirror import uri_problem
from llmkt_ray.sweep.needs import need_problems
from llmkt_ray.sweep.pipeline import ItemMeanNode
from llmkt_ray.sweep.plan import Plan, layer_wish
from llmkt_ray.sweep.search import is_relative_file, storage_url_problem
from llmkt_ray.sweep.tuning import with_settings
from llmkt_ray.training.bridge.registry import MODELS, model_problem
from llmkt_ray.training.inputs import probe_tables
from llmkt_ray.training.layers import check_freezing, probe_layers, resolve_layers
from llmkt_ray.training.metrics import metric_problem, protocol_problem
from llmkt_ray.transfer.loss import LOSSES, check_widths
from llmkt_ray.transfer.taps import Tap


def check_study(
    study: StudyConfig,
    store: ArtifactStore | None,
    *,
    allow_code: bool = False,
    local: bool = True,
    needs_all: bool = True,
    writes_results: bool = True,
) -> None:
    """Returns if the study can run.

    Args:
        study: the study.
        store: its artifacts; None: they cannot be opened, which is a problem among the others.
        allow_code: whether classes by import path may be loaded.
        local: whether the trials run on this machine, so that its GPUs are the ones that count.
        needs_all: whether what is not at hand here (see `not_at_hand`) is a problem; it is for a run, not for a look at the file.
        writes_results: whether the results folder must be this study's and free; not for what makes artifacts alone.

    Raises:
        StudyError: with every problem found.
    """
    problems = list(study_problems(study, store, allow_code=allow_code, writes_results=writes_results))
    if needs_all:
        problems += not_at_hand(study, local=local)
    if problems:
        raise StudyError(dict.fromkeys(problems), f"study {study.name!r}")


def refuse_impossible_targets(plan: Plan, store: ArtifactStore) -> None:
    """Returns if every text and target can be made of the users and items that its split really has, and texts that are there are as
    asked for; called when the splits are there.

    Raises:
        StudyError: with every one that cannot.
    """
    problems: dict[str, None] = {}
    for written in plan.profiles:
        if written.key in plan.there:  # by this study or by another one, which may have asked for less
            try:
                check_stored(written.config, written.split.config.name, store, written.key)
            except ProfileError as error:
                problems[str(error)] = None
    for target in plan.targets:
        users = store.manifest("split", target.embedding.split.key).notes["n_users"]
        width = encoder_width(target.embedding.config)
        problem = None if width is None else reduction_problem(target.config, target.dims, users, width)
        if problem:
            problems[f"{problem} (targets of {target.label})"] = None
    written_of = {profiles.split.config.name: profiles.split.key for profiles in plan.profiles if profiles.config.llm != "file"}
    for key in written_of.values():  # all splits of a dataset have the same items
        data = PreparedData.load(store, key)
        problems |= dict.fromkeys(_raised(partial(refuse_without_facts, item_facts(data.items), data.name)))
    for node in plan.embeddings:
        if isinstance(node, ItemMeanNode) and not store.manifest("split", node.split.key).notes["item_fields"]:
            problems[
                f"control 'item_mean' is impossible on {node.split.config.name!r}: its items have no title, genres, creator, category or "
                "description to embed; give the dataset an items table with one of these, or leave 'item_mean' out of `controls`"
            ] = None
    for knowledge in plan.knowledge:
        if not store.manifest("split", knowledge.split.key).notes["item_fields"]:
            problems[
                f"KAR is impossible on {knowledge.split.config.name!r}: its items have no title, genres, creator, category or description "
                "to write knowledge texts from; give the dataset an items table with one of these, or leave static_profile, kar and "
                "kar_treated out of `controls`"
            ] = None
    if problems:
        raise StudyError(problems, f"study {plan.study.name!r}")


def not_at_hand(study: StudyConfig, *, local: bool = True) -> list[str]:
    """Returns what a run needs and this machine lacks, as sentences: datasets that nobody may pass on, GPUs.

    Args:
        study: the study.
        local: whether the trials run on this machine, so that its GPUs are the ones that count.
    """
    lacks = [problem for dataset in study.datasets if _is_absent(dataset) for problem in dataset_problems(dataset)]
    return [*lacks, *(_machine_problems(study) if local else ())]


def _is_absent(dataset: DatasetConfig) -> bool:
    """Says whether a dataset is one known by name that is got by hand, and not here."""
    known = KNOWN.get(dataset.name)
    there = dataset.path is not None and Path(dataset.path).expanduser().is_dir()
    return known is not None and not known.bundled and not there


def study_problems(study: StudyConfig, store: ArtifactStore | None, *, allow_code: bool, writes_results: bool = True) -> Iterator[str]:
    """Yields every problem of the study itself as a sentence; see `not_at_hand` for what the machine lacks."""
    names = [*_name_problems(study, allow_code=allow_code)]
    yield from names
    usable = []
    for dataset in study.datasets:
        if _is_absent(dataset):
            continue
        try:
            problems = dataset_problems(dataset)
        except LlmktError as error:
            problems = [str(error)]
        yield from problems
        if not problems:
            usable.append(dataset)
    yield from _source_problems(study)
    yield from source_problems(study)
    yield from labelled_problems(study, allow_code=allow_code)
    yield from kar_problems(study, allow_code=allow_code)
    yield from _order_problems(study, allow_code=allow_code)
    if not names:
        yield from _layer_problems(study)
        try:
            yield from need_problems(study, store, usable) if store is not None else ()
        except LlmktError as error:  # a store that cannot be read
            yield str(error)
    problem = storage_url_problem(study.search.storage) if study.search.storage else None
    if problem:
        yield problem
    if "://" in study.storage and is_relative_file(study.search.storage):
        yield (
            f"search.storage {study.search.storage!r} is a file in the folder that the run is started in, which is thrown away with a job "
            "or a machine, while `storage` is an object store; give the URL of a database server, or an absolute path (sqlite:////folder/x.db)"
        )
    if store is None:
        yield from _raised(partial(FileStore, artifacts_folder(study)))
    else:
        yield from _storage_problems(study, store, writes_results=writes_results)


def _name_problems(study: StudyConfig, *, allow_code: bool) -> Iterator[str]:
    for model in study.models:
        if model.class_path is not None:
            if not allow_code:
                yield (
                    f"model {model.name!r} names a class to import ({model.class_path}): that runs code from there; if you trust it, "
                    "run again with --allow-code"
                )
        elif model.name not in MODELS:
            yield str(model_problem(model.name))
        elif MODELS[model.name].is_reference:
            yield f"model {model.name!r} has no layer to transfer to; list it under `evaluation.references` instead"
    for name in study.evaluation.references:
        if name not in MODELS:
            yield unknown_name("reference", name, [known for known in MODELS if MODELS[known].is_reference])
        elif not MODELS[name].is_reference:
            yield f"reference {name!r} is a model that is trained in steps; list it under `models` instead"
    for metric in study.evaluation.metrics:
        problem = metric_problem(metric)
        if problem:
            yield problem
    if not any(map(metric_problem, study.evaluation.metrics)):
        problem = protocol_problem(study.evaluation.protocol, study.evaluation.metrics)
        if problem:
            yield problem
    for loss in study.transfer.loss:
        if loss not in LOSSES:
            yield unknown_name("loss", loss, LOSSES)
    for reduction in study.reduction:
        if reduction.method not in REDUCERS:
            yield unknown_name("reduction method", reduction.method, REDUCERS)
    if isinstance(study.transfer.layers, dict):
        for name in study.transfer.layers:
            if name not in {model.name for model in study.models}:
                yield unknown_name("transfer.layers: model", name, [model.name for model in study.models])
    if study.tracking.mlflow and importlib.util.find_spec("mlflow") is None:
        yield 'tracking.mlflow needs the package mlflow-skinny (or mlflow); install it with: pip install "llmkt_ray[mlflow]"'
    elif study.tracking.mlflow:
        problem = uri_problem(study.tracking.mlflow)
        if problem:
            yield problem
    if study.name == "artifacts":
        yield "a study cannot be named 'artifacts': that folder holds the artifacts of all studies; choose another `name`"


def _source_problems(study: StudyConfig) -> Iterator[str]:
    """Yields what is wrong with the files of profiles and with the encoders."""
    labels: dict[str, str] = {}
    for profiles in study.profiles:
        try:
            key = profiles_key(profiles, "check", study.seed)
        except LlmktError as error:
            yield str(error)
            continue
        if key in labels:
            yield (
                f"profiles {labels[key]!r} and {profiles.label!r} are the same texts under two names, and would share their trials; "
                "leave one out, or give the other one another file, model or prompt (or `generation`, with a temperature above 0)"
            )
        labels.setdefault(key, profiles.label)
    for profiles in (*study.profiles, study.kar.items):
        if profiles.llm in LANGUAGE_MODELS and profiles.generation and not profiles.temperature:
            yield (
                f"profiles {profiles.label!r} are generation {profiles.generation} at temperature 0, where the seed changes nothing: "
                "the same texts as generation 0, paid for again; set a temperature above 0 (0.7) for all generations of "
                "the model, or leave `generation` out"
            )
    for embedding in study.embedding:
        yield from _raised(partial(encoder_identity, embedding))


def _order_problems(study: StudyConfig, *, allow_code: bool) -> Iterator[str]:
    """Yields sequential models on splits that put later rows into train than into test."""
    for model in study.models:
        found = known_class(model, allow_code=allow_code)
        if found is not None and found[1].family == "sequential":
            for dataset in study.datasets:
                if dataset.split.kind == "random":
                    yield (
                        f"model {model.name!r} predicts what comes next, but the split of {dataset.name!r} is random: it would train on "
                        "rows that come after those it is tested on; set split.kind to leave_one_out or time"
                    )


def _layer_problems(study: StudyConfig) -> Iterator[str]:
    """Yields layers that do not exist or do not know the user, and widths that do not fit."""
    for model in study.models:
        try:
            taps = resolve_layers(
                layer_wish(study, model), probe_layers(model.name, None, model.hyperparameters, model.class_path), model.name
            )
        except LlmktError as error:
            yield str(error)
            continue
        yield from _searched_problems(model, taps)
        yield from _tuned_problems(study.tuning, model)
        for tap in taps:
            yield from _width_problems(study, model.name, tap)
        for schedule in study.transfer.schedule:
            yield from _raised(partial(check_freezing, model.name, model.hyperparameters, model.class_path, schedule, taps))
        if any(arm in TABLE_ARMS for arm in study.controls_of(model)):
            yield from input_problems(study, model, probe_tables(model.name, None, model.hyperparameters, model.class_path))


def _drawn(from_range: bool) -> str:
    return " (a range holds fractions; list whole numbers in `choices`)" if from_range else ""


def _tuned_problems(tuning: TuningConfig, model: ModelConfig) -> Iterator[str]:
    """Yields settings that tuning would try and that the model refuses: none of these trials could run."""
    for name, value in tried_of(tuning) if tuning.trials else ():
        if name in OWN_SETTINGS:
            continue
        tried = with_settings(model, {name: value})
        try:
            probe_layers(tried.name, None, tried.hyperparameters, tried.class_path)
        except LlmktError as error:
            yield f"tuning of model {model.name!r} tries {name} {value!r}{_drawn(name in tuning.ranges)}: {error}"


def _searched_problems(model: ModelConfig, taps: Sequence[Tap]) -> Iterator[str]:
    """Yields searched settings with values that the model refuses, or that change its taps: the targets of one search are the same."""
    search, shapes = model.search, {tap.name: tap.width for tap in taps}
    for name, value in tried_of(search):
        tried = with_settings(model, {name: value})
        try:
            found = {tap.name: tap.width for tap in probe_layers(tried.name, None, tried.hyperparameters, tried.class_path)}
        except LlmktError as error:
            yield f"search of model {model.name!r} tries {name} {value!r}{_drawn(name in search.ranges)}: {error}"
            continue
        if shapes.items() - found.items():
            yield (
                f"search of model {model.name!r} tries {name} {value!r}, which changes the width of a layer that is tapped "
                f"({shapes} would be { ({layer: found.get(layer) for layer in shapes}) }): its targets would be others; "
                "list a model of its own for each such value"
            )


def _width_problems(study: StudyConfig, model: str, tap: Tap) -> Iterator[str]:
    for reduction in study.reduction:
        dims = tap.width if reduction.dims == "layer" else reduction.dims
        for embedding in study.embedding:
            if reduction.method in REDUCERS and not list(_raised(partial(encoder_width, embedding))):
                width = encoder_width(embedding)
                problem = None if width is None else reduction_problem(reduction, dims, reduction.fit_sample, width)
                if problem:
                    yield f"{problem} (layer {tap.name!r} of {model}, encoder {embedding.encoder!r})"
        for loss in study.transfer.loss:
            yield from _raised(partial(check_widths, loss, study.transfer.projection, f"{tap.name} of {model}", tap.width, dims))


def _machine_problems(study: StudyConfig) -> Iterator[str]:
    for what, asked in (("trial", study.resources.trial.gpus), ("profiles", study.resources.profiles.gpus)):
        if asked and not torch.cuda.is_available():
            yield (
                f"resources.{what} asks for {asked:g} GPU, but torch {torch.__version__} finds none on this machine; set gpus: 0, or run "
                "on a cluster that has one (--address)"
            )


def _storage_problems(study: StudyConfig, store: ArtifactStore, *, writes_results: bool) -> Iterator[str]:
    folder = study_folder(study)
    for root in (folder, store.root) if writes_results else (store.root,):
        problem = write_problem(root)
        if problem:
            yield problem
            return
    if not writes_results:
        return
    problem = owner_problem(study)
    if problem:
        yield problem
    other = holder(folder) if store.files.is_local else None  # elsewhere the run itself looks, for as long as that takes
    if other:
        yield busy_problem(folder, other)


def _raised(look: Callable[[], object]) -> Iterator[str]:
    """Yields the error that `look` raises, if it does."""
    try:
        look()
    except LlmktError as error:
        yield str(error)
