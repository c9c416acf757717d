"""The models that the bridge can build, by RecBole's names; reading this imports no RecBole."""

from dataclasses import dataclass
from typing import Literal

from llmkt_ray.errors import TrainingError, unknown_name

Family = Literal["general", "context", "sequential"]
Batches = Literal["pairwise", "pointwise", "users", "sequences", "reference"]


@dataclass(frozen=True)
class ModelEntry:
    """What the study needs to know of a model before it is built.

    Attributes:
        name: RecBole's name.
        family: "general", "context" (features of user and item) or "sequential".
        batches: what a training batch holds: "pairwise" (user, item, negative), "pointwise" (user, item, label), "users" (user
            rows), "sequences" (history, next item); "reference" models are computed, not trained in steps, and have no
            layer.
    """

    name: str
    family: Family
    batches: Batches

    @property
    def is_reference(self) -> bool:
        """Whether the model is a reference line: no training steps, no layer to tap."""
        return self.batches == "reference"


_GENERAL: dict[Batches, tuple[str, ...]] = {
    "pairwise": ("BPR", "ConvNCF", "DGCF", "GCMC", "LightGCN", "LINE", "NCL", "NGCF", "SGL", "SimpleX", "SpectralCF"),
    "pointwise": ("DMF", "FISM", "NAIS", "NeuMF", "NNCF"),
    "users": ("CDAE", "DiffRec", "ENMF", "LDiffRec", "MacridVAE", "MultiDAE", "MultiVAE", "RaCT", "RecVAE"),
    "reference": ("ADMMSLIM", "EASE", "ItemKNN", "NCEPLRec", "Pop", "Random", "SLIMElastic"),
}
_CONTEXT = (
    "AFM", "AutoInt", "DCN", "DCNV2", "DeepFM", "DSSM", "EulerNet", "FFM", "FiGNN", "FM", "FNN", "FwFM", "LR", "NFM", "PNN", "WideDeep",
    "xDeepFM",
)  # fmt: skip
_SEQUENTIAL = (
    "BERT4Rec", "Caser", "CORE", "FOSSIL", "FPMC", "GCSAN", "GRU4Rec", "HGN", "HRM", "LightSANs", "NARM", "NextItNet", "NPE", "RepeatNet",
    "S3Rec", "SASRec", "SINE", "SRGNN", "STAMP", "TransRec",
)  # fmt: skip
MODELS: dict[str, ModelEntry] = (
    {name: ModelEntry(name, "general", batches) for batches, names in _GENERAL.items() for name in names}
    | {name: ModelEntry(name, "context", "pointwise") for name in _CONTEXT}
    | {name: ModelEntry(name, "sequential", "sequences") for name in _SEQUENTIAL}
)


def model_names() -> tuple[str, ...]:
    """Returns the names of all models that can be built, sorted."""
    return tuple(sorted(MODELS))


_FEATURES = "it reads features of the items of a history, which batches of sequences here do not hold"
_LABELS = "it learns from labelled rows with their histories, and batches of sequences here hold no labels"
NOT_OFFERED: dict[str, str] = {
    "KD_DAGFM": "RecBole trains it in three runs (teacher, distillation, fine-tuning) that hand over by files",
    "DIEN": _LABELS,
    "DIN": _LABELS,
    "FDSA": _FEATURES,
    "GRU4RecF": _FEATURES,
    "SASRecF": _FEATURES,
    "FEARec": "it looks up other histories with the same next item in a table of all histories, which is not made here",
    "GRU4RecKG": "it needs a knowledge graph (pre-trained entity vectors), which no split here has",
    "KSR": "it needs a knowledge graph (pre-trained entity and relation vectors), which no split here has",
    "SHAN": "RecBole trains it on histories that end with the latest item, and ranks with histories that end with padding",
}
"""Models of RecBole that cannot be trained here by the method that their name stands for, and why."""

BESIDE_SCORES: dict[str, tuple[str, ...]] = {"RaCT": ("critic_net",), "RecVAE": ("prior",)}
"""Modules that give a term of the loss and no part of any score (RecVAE's density of z under its prior, RaCT's critic): neither they nor
their parts are ever what `auto` stands for."""


def model_problem(name: str) -> str | None:
    """Returns why there is no such model, or None."""
    if name in NOT_OFFERED:
        return f"model {name!r} is not offered: {NOT_OFFERED[name]}; choose another model"
    return None if name in MODELS else unknown_name("model", name, MODELS)


def model_entry(name: str) -> ModelEntry:
    """Returns a model's entry.

    Raises:
        TrainingError: the model is not known, or not offered, and why.
    """
    problem = model_problem(name)
    if problem:
        raise TrainingError(problem)
    return MODELS[name]


def is_reference(name: str) -> bool:
    """Says whether a model is a reference line (Pop, ItemKNN, EASE, ...): computed at once, without a layer."""
    return model_entry(name).is_reference
