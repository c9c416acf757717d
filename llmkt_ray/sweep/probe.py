"""What the layers of a model know about the profiles after plain training: `llmkt layers MODEL --probe DATASET`.

The training is that of the study's own baseline, seed index 0, its best validation epoch; the profiles are the study's first choice,
reduced to the width of the model's `auto` layer, so that all taps are measured against the same targets.
"""

from pathlib import Path

from rich.console import Console

from llmkt_ray.data.known import KNOWN
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.targets import Targets
from llmkt_ray.errors import StudyError, unknown_name
from llmkt_ray.study import DatasetConfig, EvaluationConfig, ModelConfig, PositiveRule, SplitRule, StudyConfig, TuningConfig
from llmkt_ray.study_file import load_study
from llmkt_ray.study_work import class_path_problem
from llmkt_ray.sweep import cluster
from llmkt_ray.sweep.check import check_study
from llmkt_ray.sweep.loop import LoopExecutor
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.progress import Progress
from llmkt_ray.sweep.run import make_splits, make_targets_for, store_of
from llmkt_ray.training.bridge.registry import model_entry, model_problem
from llmkt_ray.training.knowledge import Knowledge, knowledge_of, train_plainly
from llmkt_ray.training.layers import model_taps
from llmkt_ray.transfer.taps import Tap, candidates

STARS = 4.0
"""Smallest rating that is a positive in a dataset known by name: all of these have one to five stars."""


def named_model(model: str, *, allow_code: bool) -> ModelConfig:
    """Returns the settings of a model given by RecBole's name, or as a class of the user's own, `package.module:Class`.

    Raises:
        StudyError: it is no name, or a class, and classes may not be loaded.
    """
    if not model:
        raise StudyError([str(model_problem(model))])
    if ":" not in model:
        return ModelConfig(name=model)
    problem = class_path_problem(model)
    if problem:
        raise StudyError([problem])
    if not allow_code:
        raise StudyError([f"{model} is a model class of your own: importing it runs its code; run again with --allow-code"])
    return ModelConfig(name=model.rpartition(":")[2], class_path=model)


def probe_study(dataset: str, model: ModelConfig) -> StudyConfig:
    """Returns the study that a probe of a model is: one dataset, one choice of everything.

    Args:
        dataset: a study file (`.yaml`, `.yml`), whose settings of the model are taken where it has the model; the name of a known
            dataset; or a dataset's folder, in which every interaction is a positive. Without a study the profiles are the template's
            and all the rest is a study file's default, but sequential models, which need an order, are split leave-one-out.
        model: the model.

    Raises:
        StudyError: there is no such file, dataset or folder, or the study file has errors.
        TrainingError: the model is not known.
    """
    if dataset.endswith((".yaml", ".yml")):
        study = load_study(dataset)
        model = next((given for given in study.models if given.name == model.name), model)
    else:
        data = _dataset(dataset, model)
        study = StudyConfig(name="probe", datasets=(data,), models=(model,))
    first = study.datasets[0]
    alpha = study.transfer.claim_alpha
    return study.model_copy(
        update={
            "datasets": (first.model_copy(update={"train_share": first.train_share[:1]}),),
            "profiles": study.profiles[:1],
            "embedding": study.embedding[:1],
            "reduction": study.reduction[:1],
            "models": (model.model_copy(update={"layers": "auto", "controls": None}),),
            "transfer": study.transfer.model_copy(
                update={"alphas": (alpha,), "loss": study.transfer.loss[:1], "schedule": study.transfer.schedule[:1]}
            ),
            "controls": ("baseline",),
            "seeds": 1,
            "evaluation": EvaluationConfig(**{**study.evaluation.model_dump(), "references": ()}),
            "search": type(study.search)(),
            "tuning": TuningConfig(),
        }
    )


def _dataset(dataset: str, model: ModelConfig) -> DatasetConfig:
    sequential = model.class_path is None and model_entry(model.name).family == "sequential"
    split = SplitRule(kind="leave_one_out" if sequential else "random")
    if dataset in KNOWN:
        return DatasetConfig(name=dataset, positive=PositiveRule(rating_at_least=STARS), split=split)
    folder = Path(dataset)
    if not folder.is_dir():
        raise StudyError([unknown_name("dataset", dataset, KNOWN, "Or give a dataset's folder, or a study file (.yaml).")])
    return DatasetConfig(name=folder.resolve().name, path=dataset, split=split)


def probe_knowledge(study: StudyConfig, console: Console, *, allow_code: bool = False) -> tuple[tuple[Tap, ...], tuple[Knowledge, ...]]:
    """Trains the model of a `probe_study` plainly; returns all of its taps, and what the user-aligned ones then know.

    Artifacts go to the study's store, where a run of the study finds them.

    Raises:
        StudyError: the study cannot run.
        LlmktError: a stage cannot be computed, or too few users have a profile and a training row.
    """
    store, progress, worker = store_of(study), Progress(console), LoopExecutor()
    check_study(study, store, allow_code=allow_code, writes_results=False)
    make_splits(study, store, worker, progress)
    plan = make_plan(study, store)
    plain = next(spec for spec in plan.trials if spec.arm == "baseline")
    taught = next(spec for spec in plan.trials if spec.arm == "treated")
    make_targets_for([taught], plan, store, worker, progress)
    data = PreparedData.load(store, plain.split_key)
    targets = Targets.load(store, str(taught.targets_key))
    with progress.stage("training", plain.epochs):
        built = train_plainly(
            plain,
            data,
            device=cluster.device_of(study),
            threads=cluster.threads_of(study),
            on_epoch=lambda row: progress.artifact_made(f"epoch {row['epoch']}"),
        )
    taps, found = model_taps(built, data), []
    with progress.stage("taps", len(candidates(taps))):
        for knowledge in knowledge_of(built, data, targets, candidates(taps)):
            found.append(knowledge)
            progress.artifact_made(knowledge.tap.name)
    return taps, tuple(found)
