"""What some models learn before the first epoch of a trial (RaCT, S3Rec): the same in all arms, so computed once where it can be kept."""

import math

import torch

from llmkt_ray.errors import TrainingError
from llmkt_ray.seeds import derive_seed
from llmkt_ray.training.batches import BatchSource
from llmkt_ray.training.bridge.models import BuiltModel
from llmkt_ray.training.checkpoint import CheckpointFile
from llmkt_ray.training.isolation import seed_globals
from llmkt_ray.training.loop import make_adam
from llmkt_ray.training.spec import TrialSpec
from llmkt_ray.transfer.state import ModelState


def train_stages(spec: TrialSpec, model: BuiltModel, batches: BatchSource, kept: CheckpointFile | None) -> None:
    """Trains a model through its stages, without transfer and each with an optimizer of its own; most models have none.

    Args:
        spec: the trial.
        model: the model as it was built; it is left as the trial's first epoch begins.
        batches: where each epoch's batches come from.
        kept: where the outcome is kept for other trials with the same stages; None: nowhere.

    Raises:
        TrainingError: the loss became NaN or infinite.
        StorageError: the outcome cannot be written.
    """
    if not model.stages:
        return
    state = ModelState(model.module)
    saved = kept.load(model.device) if kept is not None else None
    if saved is not None:
        state.load(saved[1])
    else:
        for stage in model.stages:
            stage.begin(model.module)
            optimizer = make_adam(spec)([parameter for parameter in model.module.parameters() if parameter.requires_grad])
            for epoch in range(1, stage.epochs + 1):
                seed_globals(derive_seed(spec.seed, stage.name, epoch))
                model.module.train()
                total = torch.zeros(())
                for batch in batches.epoch(epoch):
                    optimizer.zero_grad(set_to_none=True)
                    loss = model.loss(batch.interaction)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    total = total + loss.detach()
                if not math.isfinite(float(total)):
                    raise TrainingError(
                        f"the loss of {spec.model} became {float(total)} in epoch {epoch} of stage {stage.name}; lower the learning rate"
                    )
    model.begin()
    if kept is not None and saved is None:
        kept.save(0, state.copy)
