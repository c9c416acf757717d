"""Models that RecBole trains by a trainer of their own: what an epoch of theirs consists of.

Every model is trained in passes over the epoch's batches; an ordinary model's epoch is one pass in which everything learns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from llmkt_ray.training.bridge.settings import Settings


def _nothing(_: Any) -> None:
    """What is due before a pass of an ordinary model."""


@dataclass(frozen=True)
class Pass:
    """One pass over the batches of an epoch.

    Attributes:
        part: the submodule whose parameters learn; empty: all.
        options: what `calculate_loss` is given besides the batch.
        before: called with the model before the pass.
    """

    part: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Any], None] = _nothing

    def at_rest(self, model: nn.Module) -> list[nn.Parameter]:
        """Returns the model's parameters that do not learn in this pass.

        Adam keeps its moments and counts steps for each parameter by itself, so one optimizer that is given no gradient of these
        does what RecBole's separate optimizers do.
        """
        return [parameter for name, parameter in model.named_parameters() if self.part and not name.startswith(f"{self.part}.")]


def _recvae(settings: Settings) -> tuple[Pass, ...]:
    """RecVAE (Shenbin et al. 2020): passes for the encoder with noisy input, then the prior takes it over, then the decoder's."""
    encoder = Pass("encoder", {"encoder_flag": True})
    decoder = Pass("decoder", {"encoder_flag": False})
    first = replace(decoder, before=lambda model: model.update_prior())
    return (*[encoder] * int(settings["n_enc_epochs"]), first, *[decoder] * (int(settings["n_dec_epochs"]) - 1))


OWN_PASSES: dict[str, Callable[[Settings], tuple[Pass, ...]]] = {"RecVAE": _recvae}
"""By the name of RecBole's class."""


def passes_of(module: nn.Module, settings: Settings) -> tuple[Pass, ...]:
    """Returns the passes of one epoch of a model, which may be derived from one of RecBole's."""
    for base in type(module).__mro__:
        if base.__name__ in OWN_PASSES and base.__module__.startswith("recbole."):
            return OWN_PASSES[base.__name__](settings)
    return (Pass(),)
