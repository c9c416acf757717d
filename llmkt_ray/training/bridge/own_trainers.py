"""Models that RecBole trains by a trainer of their own: what an epoch of theirs consists of, and what comes before the first.

Every model is trained in passes over the epoch's batches; an ordinary model's epoch is one pass in which everything learns. What
RecBole does in several runs that hand over by files (RaCT, S3Rec) is here done before the trial's first epoch, the same in all arms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from llmkt_ray.errors import TrainingError, unknown_name
from llmkt_ray.training.bridge.settings import Settings, is_count


def _nothing(_: Any) -> None:
    """What is due before a pass, or before training, of an ordinary model."""


@dataclass(frozen=True)
class Pass:
    """One pass over the batches of an epoch.

    Attributes:
        part: the submodule whose parameters learn; empty: all.
        options: what `calculate_loss` is given besides the batch.
        before: called with the model before the pass.
        terms: how many parts of the loss count, as the end of a slice; None: all.
    """

    part: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Any], None] = _nothing
    terms: int | None = None

    def at_rest(self, model: nn.Module) -> list[nn.Parameter]:
        """Returns the model's parameters that do not learn in this pass.

        Adam keeps its moments and counts steps for each parameter by itself, so one optimizer that is given no gradient of these
        does what RecBole's separate optimizers do.
        """
        return [parameter for name, parameter in model.named_parameters() if self.part and not name.startswith(f"{self.part}.")]


@dataclass(frozen=True)
class Stage:
    """Plain training before the trial's first epoch, by an optimizer of its own.

    Attributes:
        name: for messages and seeds.
        epochs: how long.
        begin: puts the model into the state that it is trained in.
    """

    name: str
    epochs: int
    begin: Callable[[Any], None]


Passes = Callable[[int], tuple[Pass, ...]]
"""From an epoch, 1-based, to its passes; equally many in all epochs."""


@dataclass(frozen=True)
class Sizes:
    """What of a split decides whether some models can be trained on it.

    Attributes:
        users, items: counts, without RecBole's padding.
        last_batch: rows of the last batch of an epoch, which is the smallest.
    """

    users: int
    items: int
    last_batch: int


Needs = Literal["", "tables", "batches"]
"""What a model needs beside rows to learn from, by what tells whether it is there: the users and items, or the division into parts too."""


@dataclass(frozen=True)
class OwnTrainer:
    """How a model is trained that is not trained like the others.

    Attributes:
        name: RecBole's trainer; empty: the ordinary one.
        passes: of the settings, what an epoch consists of.
        stages: of the settings, what comes before the first epoch.
        begin: puts the model into the state that the trial's epochs train and that is ranked with.
        problem: of the settings and sizes, what makes its training impossible, or None.
        needs: what it needs of a split.
    """

    name: str = ""
    passes: Callable[[Settings], Passes] = lambda _: lambda _: (Pass(),)
    stages: Callable[[Settings], tuple[Stage, ...]] = lambda _: ()
    begin: Callable[[Any], None] = _nothing
    problem: Callable[[Settings, Sizes], str | None] = lambda *_: None
    needs: Needs = ""


def _recvae(settings: Settings) -> Passes:
    """RecVAE (Shenbin et al. 2020): passes for the encoder with noisy input, then the prior takes it over, then the decoder's."""
    encoder = Pass("encoder", {"encoder_flag": True})
    decoder = Pass("decoder", {"encoder_flag": False})
    first = replace(decoder, before=lambda model: model.update_prior())
    passes = (*[encoder] * int(settings["n_enc_epochs"]), first, *[decoder] * (int(settings["n_dec_epochs"]) - 1))
    return lambda _: passes


def _ncl(settings: Settings) -> Passes:
    """NCL (Lin et al. 2022): clusters every `m_step` epochs; the loss on their prototypes, its last part, counts after `warm_up_step`."""
    every, warm_up = int(settings["m_step"]), int(settings["warm_up_step"])

    def passes(epoch: int) -> tuple[Pass, ...]:
        is_due = (epoch - 1) % every == 0
        return (Pass(before=(lambda model: model.e_step()) if is_due else _nothing, terms=-1 if epoch <= warm_up else None),)

    return passes


def _ncl_problem(settings: Settings, sizes: Sizes) -> str | None:
    clusters, most = settings["num_clusters"], min(sizes.users, sizes.items) + 1  # the padding is clustered too
    if clusters is None or (is_count(clusters) and clusters <= most):  # None: a class derived from it has a number of its own
        return None
    return (
        f"NCL makes {clusters} clusters of {sizes.users} users and of {sizes.items} items; "
        f"set its hyper-parameter num_clusters to 1 to {most}"
    )


def _ract_stage(name: str) -> Callable[[Any], None]:
    """Returns what RecBole does when it builds RaCT for one of its three runs: who learns, and a new count of annealing steps."""

    def begin(model: Any) -> None:
        model.train_stage, model.update = name, 0
        model.input_matrix = model.predict_matrix = model.true_matrix = None  # of the last batch
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter_name.startswith("critic_net.") == (name == "critic_pretrain"))

    return begin


def _ract(settings: Settings) -> tuple[Stage, ...]:
    """RaCT (Lobel et al. 2020): the actor learns to reconstruct, the critic to tell NDCG from its loss; then the actor from the critic."""
    return tuple(Stage(name, int(settings["pretrain_epochs"]), _ract_stage(name)) for name in ("actor_pretrain", "critic_pretrain"))


def _ract_problem(settings: Settings, sizes: Sizes) -> str | None:
    depth, most = settings["metrics_k"], sizes.items + 1  # the padding is ranked too
    if depth is not None and not (is_count(depth) and depth <= most):  # None: a class derived from it has a depth of its own
        return f"RaCT's critic learns NDCG@{depth}, but there are {sizes.items} items; set its hyper-parameter metrics_k to 1 to {most}"
    if sizes.last_batch == 1:
        return "RaCT's critic normalises over the users of a batch, but the last batch holds one user alone; set another batch_size"
    return None


def _s3rec_stage(name: str) -> Callable[[Any], None]:
    """Returns what RecBole does when it builds S3Rec for one of its two runs: which loss is computed, and by what."""

    def begin(model: Any) -> None:
        from recbole.model.loss import BPRLoss  # not before the shims are installed

        losses: dict[str, nn.Module] = {"BPR": BPRLoss(), "CE": nn.CrossEntropyLoss()}
        if model.loss_type not in losses:
            raise TrainingError(unknown_name("loss_type of S3Rec", str(model.loss_type), losses))
        model.train_stage = name
        model.loss_fct = losses[model.loss_type] if name == "finetune" else nn.BCEWithLogitsLoss(reduction="none")

    return begin


def _s3rec(settings: Settings) -> tuple[Stage, ...]:
    """S3-Rec (Zhou et al. 2020): masked items, their attributes and segments are predicted; then, fine-tuning, the next item."""
    return (Stage("pretrain", int(settings["pretrain_epochs"]), _s3rec_stage("pretrain")),)


OWN_TRAINERS: dict[str, OwnTrainer] = {
    "NCL": OwnTrainer("NCLTrainer", passes=_ncl, problem=_ncl_problem, needs="tables"),
    "RaCT": OwnTrainer("RaCTTrainer", stages=_ract, begin=_ract_stage("finetune"), problem=_ract_problem, needs="batches"),
    "RecVAE": OwnTrainer("RecVAETrainer", passes=_recvae),
    "S3Rec": OwnTrainer("S3RecTrainer", stages=_s3rec, begin=_s3rec_stage("finetune"), needs="tables"),
}
"""By the name of RecBole's class."""


def trainer_of(model_class: type) -> OwnTrainer:
    """Returns how a model of a class is trained, which may be derived from one of RecBole's."""
    for base in model_class.__mro__:
        if base.__name__ in OWN_TRAINERS and base.__module__.startswith("recbole."):
            return OWN_TRAINERS[base.__name__]
    return OwnTrainer()
