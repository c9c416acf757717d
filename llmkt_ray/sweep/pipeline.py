"""The stages before training as nodes: each knows its key before it is computed, and how to compute itself once.

split -> profiles -> embeddings -> targets. A node is small and picklable; a Ray task or a plain call may compute it.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.data.split import prepare, split_key
from llmkt_ray.embeddings.encode import embeddings_key, encode
from llmkt_ray.embeddings.encode_knowledge import make_knowledge
from llmkt_ray.embeddings.encoders import encoder_identity
from llmkt_ray.embeddings.item_mean import encode_item_means, item_mean_key
from llmkt_ray.embeddings.knowledge import knowledge_key
from llmkt_ray.embeddings.targets import make_targets, targets_key
from llmkt_ray.profiles.cost import Accounts
from llmkt_ray.profiles.engines.base import Progress, silent
from llmkt_ray.profiles.engines.file import FileEngine
from llmkt_ray.profiles.generate import generate, profiles_key
from llmkt_ray.profiles.items import ItemTexts, item_texts_key, write_item_texts
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.study import DatasetConfig, EmbeddingConfig, ProfileConfig, ReductionConfig, StudyConfig, TaskResources


@dataclass(frozen=True)
class SplitNode:
    """One frozen split: a dataset, a repetition, a share of the train rows."""

    config: DatasetConfig
    study_seed: int
    repetition: int
    train_share: float
    key: str
    kind: str = "split"

    @property
    def label(self) -> str:
        """The node in words."""
        extra = f" split {self.repetition}" if self.config.split.repetitions > 1 else ""
        return f"{self.config.name}{extra}" + (f" at {self.train_share:g}" if self.train_share < 1 else "")

    def compute(self, store: ArtifactStore) -> None:
        """Makes the artifact unless it is there."""
        prepare(self.config, study_seed=self.study_seed, repetition=self.repetition, train_share=self.train_share, store=store)


@dataclass(frozen=True)
class TextsNode:
    """Texts of one split by one LLM (or template, or file): of its users or of its items."""

    split: SplitNode
    config: ProfileConfig
    key: str
    resources: TaskResources
    accounts: Accounts | None = field(default=None, compare=False, repr=False)
    """What the study has spent on language models, while a run makes texts."""

    @property
    def source(self) -> str:
        """Who wrote them, as results name it."""
        return self.config.label

    @property
    def label(self) -> str:
        """The node in words."""
        return f"{self.split.label}, {self.source}"


@dataclass(frozen=True)
class ProfileNode(TextsNode):
    """The profiles that one LLM (or template, or file) writes from one split.

    Attributes:
        leaked: from its held-out rows too.
        history: the split whose train rows are read, where that is another one: see `profile_nodes`.
    """

    leaked: bool = False
    history: SplitNode | None = None
    kind: str = "profiles"

    @property
    def source(self) -> str:
        """Who wrote them, as results name it."""
        return f"{self.config.label} (leaked)" if self.leaked else self.config.label

    def compute(self, store: ArtifactStore, progress: Progress = silent) -> None:
        """Makes the artifact unless it is there; `progress` is told of users as they end."""
        data, seed = PreparedData.load(store, (self.history or self.split).key), self.split.study_seed
        generate(
            self.config, data, store,
            study_seed=seed, progress=progress, resources=self.resources, leaked=self.leaked, accounts=self.accounts,
        )  # fmt: skip


@dataclass(frozen=True)
class EmbeddingNode:
    """The embeddings of one set of profiles by one encoder."""

    profiles: ProfileNode
    config: EmbeddingConfig
    identity: dict[str, Any]
    key: str
    kind: str = "embeddings"

    @property
    def split(self) -> SplitNode:
        """The split that the texts were written from."""
        return self.profiles.split

    @property
    def source(self) -> str:
        """Who wrote the texts, as results name it."""
        return self.profiles.source

    @property
    def label(self) -> str:
        """The node in words."""
        return f"{self.profiles.label}, {self.config.label}"

    def compute(self, store: ArtifactStore, *, workers: int = 0) -> None:
        """Makes the artifact unless it is there, by a pool of `workers` Ray actors (0: in this process)."""
        encode(self.config, Profiles.load(store, self.profiles.key), store, workers=workers, resources=self.profiles.resources)


@dataclass(frozen=True)
class ItemMeanNode:
    """Each user as the mean of the embedded texts of the items in the history: the `item_mean` control."""

    split: SplitNode
    config: EmbeddingConfig
    identity: dict[str, Any]
    key: str
    resources: TaskResources
    full_history: bool
    kind: str = "embeddings"

    @property
    def source(self) -> str:
        """The name of this source in results."""
        return "item_mean"

    @property
    def label(self) -> str:
        """The node in words."""
        return f"{self.split.label}, item_mean, {self.config.label}"

    def compute(self, store: ArtifactStore, *, workers: int = 0) -> None:
        """Makes the artifact unless it is there, by a pool of `workers` Ray actors (0: in this process)."""
        data = PreparedData.load(store, self.split.key)
        encode_item_means(self.config, data, store, full_history=self.full_history, workers=workers, resources=self.resources)


@dataclass(frozen=True)
class TargetNode:
    """The targets of one width that one reducer makes of one set of embeddings."""

    embedding: EmbeddingNode | ItemMeanNode
    config: ReductionConfig
    dims: int
    key: str
    draw: int | None = None
    """Seed index of the trials that read them, where the reducer is fitted anew for each (`reduction.refit`)."""
    kind: str = "targets"

    @property
    def label(self) -> str:
        """The node in words."""
        which = "" if self.draw is None else f", fit {self.draw}"
        return f"{self.embedding.label}, {self.config.label} to {self.dims}{which}"

    def for_seed(self, seed_index: int) -> "TargetNode":
        """Returns the targets that trials of a seed index read: these, or (`reduction.refit`) another fit of the reducer."""
        if not self.config.refit:
            return self
        key = targets_key(self.embedding.key, self.config, self.dims, self.embedding.split.study_seed, draw=seed_index)
        return replace(self, key=key, draw=seed_index)

    def compute(self, store: ArtifactStore) -> None:
        """Makes the artifact unless it is there."""
        split = self.embedding.split
        make_targets(
            embeddings_key=self.embedding.key,
            data=PreparedData.load(store, split.key),
            reduction=self.config,
            dims=self.dims,
            study_seed=split.study_seed,
            store=store,
            draw=self.draw,
        )


@dataclass(frozen=True)
class ItemTextsNode(TextsNode):
    """The item knowledge texts of one split, which the arms of KAR read."""

    kind: str = "item_texts"

    @property
    def source(self) -> str:
        """Who wrote them, as results name it."""
        return f"items by {self.config.label}"

    def compute(self, store: ArtifactStore, progress: Progress = silent) -> None:
        """Makes the artifact unless it is there; `progress` is told of items as they end."""
        data, seed = PreparedData.load(store, self.split.key), self.split.study_seed
        write_item_texts(self.config, data, store, study_seed=seed, progress=progress, resources=self.resources, accounts=self.accounts)


@dataclass(frozen=True)
class KnowledgeNode:
    """The vectors of one set of profiles and of the item texts, which the arms of KAR read."""

    embedding: EmbeddingNode
    items: ItemTextsNode
    key: str
    kind: str = "knowledge"

    @property
    def split(self) -> SplitNode:
        """The split that they belong to."""
        return self.embedding.split

    @property
    def label(self) -> str:
        """The node in words."""
        return f"{self.embedding.label}, with {self.items.source}"

    def compute(self, store: ArtifactStore, *, workers: int = 0) -> None:
        """Makes the artifact unless it is there, the item texts encoded by a pool of `workers` Ray actors (0: in this process)."""
        make_knowledge(
            self.embedding.config,
            embeddings_key=self.embedding.key,
            texts=ItemTexts.load(store, self.items.key),
            data=PreparedData.load(store, self.split.key),
            store=store,
            workers=workers,
            resources=self.embedding.profiles.resources,
        )


Node = SplitNode | ProfileNode | EmbeddingNode | ItemMeanNode | TargetNode | ItemTextsNode | KnowledgeNode


def split_nodes(study: StudyConfig) -> tuple[SplitNode, ...]:
    """Returns every split that the study needs, in the order of the study file.

    Raises:
        DatasetError: a dataset cannot be found.
    """
    return tuple(
        SplitNode(config, study.seed, repetition, share, split_key(config, study_seed=study.seed, repetition=repetition, train_share=share))
        for config in study.datasets
        for repetition in range(config.split.repetitions)
        for share in config.train_share
    )


def profile_nodes(study: StudyConfig, split: SplitNode) -> tuple[ProfileNode, ...]:
    """Returns the profile choices of one split.

    What a language model writes of the full history is the same at every share of the train rows: it is asked once, about the
    first share, and not paid again for each. So its texts do not differ between the levels of sparsity either.

    Raises:
        ProfileError: a file of profiles cannot be found.
    """
    nodes = []
    for config in study.profiles:
        history = _first_share(split) if config.full_history and config.model else split
        key = profiles_key(config, history.key, study.seed)
        nodes.append(ProfileNode(split, config, key, study.resources.profiles, history=history))
    return tuple(nodes)


def _first_share(split: SplitNode) -> SplitNode:
    """Returns the same repetition of a split at the first share of the train rows that the study keeps."""
    config, share = split.config, split.config.train_share[0]
    if share == split.train_share:
        return split
    key = split_key(config, study_seed=split.study_seed, repetition=split.repetition, train_share=share)
    return replace(split, train_share=share, key=key)


def embedding_nodes(study: StudyConfig, profiles: ProfileNode) -> tuple[EmbeddingNode, ...]:
    """Returns the encoder choices of one set of profiles.

    Raises:
        EmbeddingError: an encoder's weights are not to be had.
    """
    nodes = []
    for config in study.embedding:
        identity = encoder_identity(config)
        nodes.append(EmbeddingNode(profiles, config, identity, embeddings_key(profiles.key, identity)))
    return tuple(nodes)


def twin_embedding(study: StudyConfig, embedding: EmbeddingNode, arm: str) -> EmbeddingNode | ItemMeanNode:
    """Returns what the control `arm` reads in place of the profiles: the same history and encoder, another source.

    Args:
        study: the study.
        embedding: the treated arm's.
        arm: one of `OWN_TARGET_ARMS`.
    """
    treated, split = embedding.profiles, embedding.split
    if arm == "item_mean":
        full = _reads_full_history(treated)
        key = item_mean_key(split.key, embedding.identity, full_history=full)
        return ItemMeanNode(split, embedding.config, embedding.identity, key, treated.resources, full)
    if arm == "leaked":
        key = profiles_key(treated.config, split.key, study.seed, leaked=True)
        profiles = ProfileNode(split, treated.config, key, treated.resources, leaked=True)
    else:
        config = ProfileConfig(
            llm="template",
            full_history=_reads_full_history(treated),
            demographics=treated.config.demographics,
            min_coverage=treated.config.min_coverage,
        )
        profiles = ProfileNode(split, config, profiles_key(config, split.key, study.seed), treated.resources)
    return EmbeddingNode(profiles, embedding.config, embedding.identity, embeddings_key(profiles.key, embedding.identity))


def _reads_full_history(profiles: ProfileNode) -> bool:
    """Returns whether texts know the full train split although the data is thinned: as asked, or a file's that does not name this split.

    What a twin reads must be the same history (METHOD.md, section 4).
    """
    config, split = profiles.config, profiles.split
    if config.llm != "file" or split.train_share == 1:
        return config.full_history
    return FileEngine(config.path or "", config.declares_split).reads_full_history(split.key)


def knowledge_node(study: StudyConfig, embedding: EmbeddingNode, first: SplitNode) -> KnowledgeNode:
    """Returns what the arms of KAR read beside one set of embedded profiles.

    Args:
        study: the study.
        embedding: the profiles, embedded.
        first: the first split of their dataset: all its splits have the same items, and nobody pays twice for texts about them.

    Raises:
        ProfileError: the item texts cannot be written as configured.
    """
    config = study.kar.items
    items = ItemTextsNode(first, config, item_texts_key(config, first.key, study.seed), study.resources.profiles)
    return KnowledgeNode(embedding, items, knowledge_key(embedding.key, items.key))


def target_node(study: StudyConfig, embedding: EmbeddingNode | ItemMeanNode, reduction: ReductionConfig, layer_width: int) -> TargetNode:
    """Returns the target of one reducer at one layer: of the layer's width where `dims` is "layer"."""
    dims = layer_width if reduction.dims == "layer" else reduction.dims
    return TargetNode(embedding, reduction, dims, targets_key(embedding.key, reduction, dims, study.seed))
