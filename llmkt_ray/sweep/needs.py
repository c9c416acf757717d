"""Whether the study's datasets have what its models need of them, asked before anything expensive starts.

NCL wants as many users and items as clusters, RaCT no user alone in a batch, S3Rec a field of the items. All of it is known from the
splits, and these from the dataset's files: where the splits are not in the store yet they are computed, as the run will, and not kept.
A dataset whose files are not on this machine is not looked at; a run is refused without them anyway.
"""

from collections.abc import Iterator, Sequence

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.catalog import load_raw
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.split import unstored
from llmkt_ray.errors import LlmktError
from llmkt_ray.study import DatasetConfig, ModelConfig, StudyConfig
from llmkt_ray.study_work import tried_of
from llmkt_ray.sweep.pipeline import split_nodes
from llmkt_ray.sweep.tuning import candidates, with_settings
from llmkt_ray.training.bridge.needs import Offer, needs_of
from llmkt_ray.training.bridge.own_trainers import Needs


def need_problems(study: StudyConfig, store: ArtifactStore, datasets: Sequence[DatasetConfig]) -> Iterator[str]:
    """Yields what models of a study, at any setting that it tries, lack in these datasets of it.

    Args:
        study: the study; its names are known to be right.
        store: its artifacts.
        datasets: those that can be used.
    """
    needing = [(model, needs) for model in study.models if (needs := _needs(model))]
    for dataset in datasets if needing else ():
        for place, data in enumerate(_splits(study, store, dataset)):
            offer = Offer(data)
            for model, needs in needing:
                if place == 0 or needs == "batches":  # all splits of a dataset have the same users and items
                    yield from _unmet(study, dataset, model, offer)
            if not any(needs == "batches" for _, needs in needing):
                break


def _needs(model: ModelConfig) -> Needs:
    try:
        return needs_of(model.name, model.class_path)
    except LlmktError:  # it cannot be imported, which is told where its layers are looked at
        return ""


def _unmet(study: StudyConfig, dataset: DatasetConfig, model: ModelConfig, offer: Offer) -> Iterator[str]:
    """Yields what a model lacks at its own settings, at those that a search tries, and at those that are drawn for tuning."""
    where = f"model {model.name!r} on {dataset.name!r}"
    tried = [(where, model)]
    for name, value in tried_of(model.search):
        tried.append((f"search of {where}, which tries {name} {value!r}", with_settings(model, {name: value})))
    if study.tuning.trials:
        tried += [(f"tuning of {where}", candidate) for candidate in candidates(study, dataset.name, model)[1:]]
    told: set[str] = set()
    for place, each in tried:
        try:
            problem = offer.problem(
                each.name,
                hyperparameters=each.hyperparameters,
                batch_size=each.batch_size or study.training.batch_size,
                class_path=each.class_path,
            )
        except LlmktError:  # a hyper-parameter is unknown, which is told where its layers are looked at
            continue
        if problem and problem not in told:
            told.add(problem)
            yield f"{problem} ({place})"


def _splits(study: StudyConfig, store: ArtifactStore, dataset: DatasetConfig) -> Iterator[PreparedData]:
    """Yields the splits of a dataset in the order of the study, each read or computed when it is asked for."""
    raw = None
    for node in split_nodes(study.model_copy(update={"datasets": (dataset,)})):
        if store.find(node.kind, node.key):
            yield PreparedData.load(store, node.key)
            continue
        if raw is None:
            raw = load_raw(dataset)
        yield unstored(raw, dataset, study_seed=node.study_seed, repetition=node.repetition, train_share=node.train_share)
