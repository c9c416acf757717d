"""The plan: which cells a study has, which trials they need, and what is there already. Nothing is started.

A trial appears once, by its key: a baseline does not depend on the profiles, nor alpha0 on the layer, so they are shared
by all cells that differ in those factors alone. A baseline chooses its epoch among as many as its two-phase twins do, so
there is one for every such window of epochs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ArtifactError
from llmkt_ray.seeds import content_key
from llmkt_ray.study import INPUT_ARMS, KAR_ARMS, OWN_TARGET_ARMS, PLAIN_ARMS, TABLE_ARMS, ModelConfig, ScheduleConfig, StudyConfig
from llmkt_ray.sweep.pipeline import (
    EmbeddingNode,
    ItemMeanNode,
    KnowledgeNode,
    Node,
    ProfileNode,
    SplitNode,
    TargetNode,
    embedding_nodes,
    knowledge_node,
    profile_nodes,
    split_nodes,
    target_node,
    twin_embedding,
)
from llmkt_ray.training.bridge.models import class_digest
from llmkt_ray.training.bridge.user_tables import UserTable
from llmkt_ray.training.inputs import probe_tables
from llmkt_ray.training.layers import probe_layers, resolve_layers
from llmkt_ray.training.spec import TrialSpec
from llmkt_ray.transfer.taps import Tap

LayerWish = str | tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One combination of factors; its trials are the alphas, the control twins and the seeds.

    Attributes:
        split, target, tap: what the cell's treated trials read, learn from and tap.
        model: the model with its settings.
        loss, schedule: how the transfer is done.
        twins: control arm to the targets of its own.
        knowledge: what the arm `kar_treated` reads, where the model has it.
    """

    split: SplitNode
    target: TargetNode
    tap: Tap
    model: ModelConfig
    loss: str
    schedule: ScheduleConfig
    twins: Mapping[str, TargetNode] = field(default_factory=dict)
    knowledge: KnowledgeNode | None = None

    @property
    def factors(self) -> dict[str, str | int | float | bool | None]:
        """The labels of the cell's treated trials."""
        return target_factors(self.target)

    @property
    def key(self) -> str:
        """A key of everything that tells this cell from the others of the study."""
        settings = [self.model.model_dump(mode="json"), self.schedule.model_dump(mode="json")]
        return content_key([self.split.key, self.target.key, self.tap.name, self.loss, *settings])

    @property
    def search_key(self) -> str:
        """A key that cells share which differ in the layer alone: in a search the layer is a parameter."""
        # `dims: layer` is another number at every layer: what the study asks for is compared, not what came of it.
        labels = self.factors | {"dims": self.target.config.dims}
        return content_key([labels, self.split.key, self.model.model_dump(mode="json"), self.loss, self.schedule.model_dump(mode="json")])

    @property
    def baseline_key(self) -> str:
        """A key that cells share whose baselines are the same."""
        window = selection_window(self.schedule).model_dump(mode="json")
        return content_key([self.split.key, self.model.model_dump(mode="json"), window])

    def facts(self) -> dict[str, Any]:
        """Returns the cell for the card."""
        return {
            "cell": self.key,
            "dataset": self.split.config.name,
            "split_key": self.split.key,
            "model": self.model.name,
            "layer": self.tap.name,
            "alignment": self.tap.alignment,
            "targets_key": self.target.key,
            "loss": self.loss,
            "schedule": self.schedule.model_dump(mode="json"),
            **self.factors,
        }


@dataclass(frozen=True)
class Plan:
    """What a study needs.

    Attributes:
        study: the study.
        splits, profiles, embeddings, targets: the artifacts, each once, in the order in which they are made.
        knowledge: what the arms of KAR read beside them.
        cells: the combinations of factors.
        trials: every trial known in advance, each once; a search adds its suggestions while it runs.
        there: keys of the artifacts that are whole and in the store.
    """

    study: StudyConfig
    splits: tuple[SplitNode, ...]
    profiles: tuple[ProfileNode, ...]
    embeddings: tuple[EmbeddingNode | ItemMeanNode, ...]
    targets: tuple[TargetNode, ...]
    cells: tuple[Cell, ...]
    trials: tuple[TrialSpec, ...]
    there: frozenset[str]
    knowledge: tuple[KnowledgeNode, ...] = ()

    @property
    def artifacts(self) -> tuple[Node, ...]:
        """All artifacts, in the order in which they are made."""
        items = {node.items.key: node.items for node in self.knowledge}.values()
        return (*self.splits, *self.profiles, *items, *self.embeddings, *self.knowledge, *self.targets)

    @property
    def searched_trials(self) -> int:
        """Number of trials that a search will suggest, over all cells and seeds."""
        search = self.study.search
        baselines = {
            cell.baseline_key for cell in self.cells if cell.model.search.names and "baseline" in self.study.controls_of(cell.model)
        }
        searches = len({cell.search_key for cell in self.cells}) + len(baselines)
        return 0 if search.kind == "grid" else searches * search.trials * self.study.seeds


def make_plan(study: StudyConfig, store: ArtifactStore, tuned: Mapping[tuple[str, str], ModelConfig] | None = None) -> Plan:
    """Returns the plan of a study; `tuned` replaces the settings of a (dataset, model) once they are known.

    Layers are resolved on the study's own split where that is in the store (as it is in a run, which makes the splits
    first), otherwise on a small built-in one.

    Raises:
        LlmktError: a dataset, a profile file, an encoder, a model or a layer is not to be had.
    """
    splits = split_nodes(study)
    there = {node.key for node in splits if store.find("split", node.key)}
    profiles: dict[str, ProfileNode] = {}
    embeddings: dict[str, EmbeddingNode | ItemMeanNode] = {}
    targets: dict[str, TargetNode] = {}
    knowledge: dict[str, KnowledgeNode] = {}
    cells: dict[str, Cell] = {}
    trials: dict[str, TrialSpec] = {}
    taps_of: dict[tuple[str, str], tuple[Tap, ...]] = {}  # all splits of a dataset have the same users and items
    tables_of: dict[tuple[str, str], tuple[UserTable, ...]] = {}
    first_of = {split.config.name: split for split in reversed(splits)}
    own: list[str] = [arm for arm in OWN_TARGET_ARMS if arm in study.arms]
    for split in splits:
        sources = [node for profile in profile_nodes(study, split) for node in embedding_nodes(study, profile)]
        twins_of = {node.key: {arm: twin_embedding(study, node, arm) for arm in own} for node in sources}
        for node in (*sources, *(twin for twins in twins_of.values() for twin in twins.values())):
            embeddings[node.key] = node
            if isinstance(node, EmbeddingNode):
                profiles[node.profiles.key] = node.profiles
        trials.update(_once(reference_specs(study, split)))
        for given in study.models:
            model = (tuned or {}).get((split.config.name, given.name), given)
            at, arms = (split.config.name, model.name), study.controls_of(model)
            if at not in taps_of:
                data = _load(store, split) if split.key in there else None
                taps_of[at] = _resolved(study, model, data)
                if any(arm in TABLE_ARMS for arm in arms):
                    tables_of[at] = probe_tables(model.name, data, model.hyperparameters, model.class_path)
            trials.update(_once(shared_specs(study, split, model)))
            first = first_of[split.config.name]
            joined = {node.key: knowledge_node(study, node, first) for node in sources} if any(arm in KAR_ARMS for arm in arms) else {}
            knowledge.update({of_kar.key: of_kar for of_kar in joined.values()})
            for of_kar in joined.values():
                trials.update(_once(feature_specs(study, model, of_kar)))
            for node, reduction in product(sources, study.reduction):
                if at in tables_of:
                    target = target_node(study, node, reduction, tables_of[at][0].width)
                    targets.update(_drawn(study, target))
                    trials.update(_once(input_specs(study, model, target)))
                for tap in taps_of[at]:
                    target = target_node(study, node, reduction, tap.width)
                    twins: dict[str, TargetNode] = {
                        arm: target_node(study, twin, reduction, tap.width) for arm, twin in twins_of[node.key].items() if arm in arms
                    }
                    targets.update(_drawn(study, target, *twins.values()))
                    for loss, schedule in product(study.transfer.loss, study.transfer.schedule):
                        cell = Cell(split, target, tap, model, loss, schedule, twins, joined.get(node.key))
                        cells[cell.key] = cell
                        trials.update(_once(cell_specs(study, cell)))
    items = {node.items.key: node.items for node in knowledge.values()}
    nodes: list[Node] = [*profiles.values(), *items.values(), *embeddings.values(), *knowledge.values(), *targets.values()]
    there |= {node.key for node in nodes if store.find(node.kind, node.key)}
    return Plan(
        study=study,
        splits=tuple({node.key: node for node in splits}.values()),
        profiles=tuple(profiles.values()),
        embeddings=tuple(embeddings.values()),
        targets=tuple(targets.values()),
        cells=tuple(cells.values()),
        trials=tuple(trials.values()),
        there=frozenset(there),
        knowledge=tuple(knowledge.values()),
    )


def target_factors(target: TargetNode) -> dict[str, str | int | float | bool | None]:
    """Returns the labels of a trial that depends on these targets."""
    return {
        **source_factors(target.embedding),
        "reduction": target.config.label,
        "dims": target.dims,
    }


def source_factors(embedding: EmbeddingNode | ItemMeanNode) -> dict[str, str | int | float | bool | None]:
    """Returns the labels of a trial that depends on these embeddings."""
    return {**split_factors(embedding.split), "llm": embedding.source, "encoder": embedding.config.label}


def split_factors(split: SplitNode) -> dict[str, str | int | float | bool | None]:
    """Returns the labels that every trial of a split carries."""
    return {"train_share": split.train_share, "split_repetition": split.repetition}


def reference_specs(study: StudyConfig, split: SplitNode) -> Iterable[TrialSpec]:
    """Yields the reference lines of a split: one trial a model, with settings that no study changes."""
    for name in study.evaluation.references:
        yield TrialSpec(
            study_seed=study.seed,
            dataset=split.config.name,
            split_key=split.key,
            model=name,
            epochs=1,
            batch_size=2048,
            learning_rate=0.001,
            arm="reference",
            metrics=study.evaluation.metrics,
            select_on=study.evaluation.select_on,
            protocol=study.evaluation.protocol,
            seed_index=0,
            factors=split_factors(split),
        )


def shared_specs(study: StudyConfig, split: SplitNode, model: ModelConfig) -> Iterable[TrialSpec]:
    """Yields the control trials that know no profile: `baseline` once a window of selectable epochs, and `alpha0` once a schedule."""
    for seed in range(study.seeds):
        if "baseline" in study.controls_of(model):
            for schedule in study.transfer.schedule:
                yield base_spec(study, split, model, seed, arm="baseline", schedule=selection_window(schedule))
        if "alpha0" in study.controls_of(model):
            for schedule in study.transfer.schedule:
                yield base_spec(study, split, model, seed, arm="alpha0", schedule=_untransferred(schedule))


def input_specs(study: StudyConfig, model: ModelConfig, target: TargetNode) -> Iterable[TrialSpec]:
    """Yields the trials of direct input: alpha0's twins that read the profile instead of learning from it, whatever layer or loss."""
    for arm, seed, schedule in product(study.controls_of(model), range(study.seeds), study.transfer.schedule):
        if arm in TABLE_ARMS:
            yield base_spec(
                study,
                target.embedding.split,
                model,
                seed,
                arm=arm,
                targets_key=target.for_seed(seed).key,
                schedule=_untransferred(schedule),
                factors=target_factors(target),
            )


def feature_specs(study: StudyConfig, model: ModelConfig, knowledge: KnowledgeNode) -> Iterable[TrialSpec]:
    """Yields the trials that read knowledge as features and transfer nothing: the static profile and KAR, alpha0's twins."""
    for arm, seed, schedule in product(study.controls_of(model), range(study.seeds), study.transfer.schedule):
        if arm in KAR_ARMS and arm in INPUT_ARMS:
            yield base_spec(
                study,
                knowledge.split,
                model,
                seed,
                arm=arm,
                schedule=_untransferred(schedule),
                factors=source_factors(knowledge.embedding),
                **_knowledge(study, arm, knowledge),
            )


def _knowledge(study: StudyConfig, arm: str, node: KnowledgeNode | None) -> dict[str, Any]:
    """Returns the fields of a trial that an arm of KAR fills; none for the others."""
    if arm not in KAR_ARMS or node is None:
        return {}
    return {"knowledge_key": node.key, "adaptor": None if arm == "static_profile" else study.kar.adaptor}


def _untransferred(schedule: ScheduleConfig) -> ScheduleConfig:
    """Returns what a trial without transfer depends on of a schedule."""
    return schedule.model_copy(update={"alpha": "constant"})


def selection_window(schedule: ScheduleConfig) -> ScheduleConfig:
    """Returns what a baseline depends on of a schedule, all else default: which epochs the tested model may come from."""
    return ScheduleConfig(kind="joint") if schedule.kind == "joint" else ScheduleConfig(switch=schedule.switch)


def cell_specs(study: StudyConfig, cell: Cell) -> Iterable[TrialSpec]:
    """Yields the trials of a cell: `treated` at every alpha of a grid, and the control twins at the claim's alpha."""
    alphas, claim_alpha = study.transfer.levels(cell.schedule)
    for seed in range(study.seeds):
        if study.search.kind == "grid":
            for alpha in alphas:
                yield treated_spec(study, cell, seed, alpha=alpha)
        for arm in study.controls_of(cell.model):
            if arm not in (*PLAIN_ARMS, *INPUT_ARMS):
                yield treated_spec(study, cell, seed, alpha=claim_alpha, arm=arm)


def treated_spec(study: StudyConfig, cell: Cell, seed: int, *, alpha: float, arm: str = "treated") -> TrialSpec:
    """Returns the trial of a cell at one alpha and seed index; a control with targets of its own keeps the cell's labels."""
    twin = cell.twins.get(arm)
    return base_spec(
        study,
        cell.split,
        cell.model,
        seed,
        arm=arm,
        alpha=alpha,
        layer=cell.tap.name,
        targets_key=(twin or cell.target).for_seed(seed).key,
        twin_key=cell.target.for_seed(seed).key if twin else None,
        loss=cell.loss,
        projection=study.transfer.projection,
        balance=study.transfer.balance,
        weights=study.transfer.weights,
        schedule=cell.schedule,
        factors=cell.factors,
        **_knowledge(study, arm, cell.knowledge),
    )


def base_spec(study: StudyConfig, split: SplitNode, model: ModelConfig, seed: int, **more: Any) -> TrialSpec:
    """Returns a trial of a model with the study's settings, and `more`."""
    training = study.training
    return TrialSpec(
        **{"factors": split_factors(split), **more},
        study_seed=study.seed,
        dataset=split.config.name,
        split_key=split.key,
        model=model.name,
        class_path=model.class_path,
        class_digest=class_digest(model.class_path),
        hyperparameters=model.hyperparameters,
        epochs=model.epochs or training.epochs,
        batch_size=model.batch_size or training.batch_size,
        learning_rate=model.learning_rate or training.learning_rate,
        weight_decay=training.weight_decay if model.weight_decay is None else model.weight_decay,
        evaluate_every=model.evaluate_every or training.evaluate_every,
        metrics=study.evaluation.metrics,
        select_on=study.evaluation.select_on,
        protocol=study.evaluation.protocol,
        seed_index=seed,
    )


def _drawn(study: StudyConfig, *targets: TargetNode) -> dict[str, TargetNode]:
    """Returns the targets that the study's seeds read: one for all of them, or (`reduction.refit`) one each."""
    return {node.key: node for target in targets for node in map(target.for_seed, range(study.seeds))}


def layer_wish(study: StudyConfig, model: ModelConfig) -> LayerWish:
    """Returns which layers the study wants of a model: "auto", "all", or names."""
    if model.layers is not None:
        return model.layers
    layers = study.transfer.layers
    return layers.get(model.name, "auto") if isinstance(layers, dict) else layers


def _resolved(study: StudyConfig, model: ModelConfig, data: PreparedData | None) -> tuple[Tap, ...]:
    taps = probe_layers(model.name, data, model.hyperparameters, model.class_path)
    return resolve_layers(layer_wish(study, model), taps, model.name)


def _load(store: ArtifactStore, split: SplitNode) -> PreparedData | None:
    try:
        return PreparedData.load(store, split.key)
    except ArtifactError:
        return None


def _once(specs: Iterable[TrialSpec]) -> dict[str, TrialSpec]:
    found: dict[str, TrialSpec] = {}
    for spec in specs:
        found.setdefault(spec.key, spec)
    return found
