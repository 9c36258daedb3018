"""The step of a single SAE as ``raysae.fit`` makes it, for those who bring the batches themselves.

Shapes: B batch, D d_in.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from raysae.training.packed import PackedStep, can_pack
from raysae.training.trainer import Trainer

STEPS = 100_000
"""The most steps with a learning rate of their own: a training that is only timed may have no end."""


def step_alone(trainer: Trainer, pack: bool | None = None) -> Callable[[Tensor], object]:
    """A function that trains on a batch ``[batch, d_in]`` of rows, which may return before the device is
    done with it. On a GPU (or with ``pack``) the SAE is a pack of one, where its variant can be."""
    config, training = trainer.model.config, trainer.training
    if pack is None:
        pack = torch.device(trainer.device).type == "cuda"
    if not pack or not can_pack(config):
        return trainer.take
    step = PackedStep(
        [trainer.model], [training], [trainer.aux_window], [trainer.tokens_since_fired_F],
        min(trainer.steps, STEPS),
    )  # fmt: skip

    def take(batch_BD: Tensor) -> None:
        inputs_BD = (batch_BD.to(trainer.mean_D) - trainer.mean_D) * trainer.scale
        step.take(inputs_BD[None])
        trainer.count(len(batch_BD))

    return take
