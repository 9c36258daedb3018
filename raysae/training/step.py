"""One update of one SAE: gradients first, then, when they are finite, Adam.

``ReferenceStep`` is plain torch and trains every variant; ``raysae.training.compiled`` is the same
mathematics for the TopK kind on CPUs. Shapes: B batch, D d_in, F d_sae.
"""

from abc import ABC, abstractmethod
from collections import defaultdict

import torch
from torch import Tensor

from raysae.sae import SAE
from raysae.training.config import TrainingConfig

BETAS, EPSILON = (0.9, 0.999), 1e-8


class Step(ABC):
    """Trains ``model`` in place."""

    name: str
    scale = 1.0
    """Factor of the rows: the SAE is trained on ``scale * x``."""
    fired_F: Tensor
    """Which latents were active in the batch of the last update."""

    def __init__(self, model: SAE, training: TrainingConfig):
        self.model, self.training = model, training
        self.adam_state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        """Each parameter's moments and its count of steps, as torch's Adam names them."""

    def dead(self, since_fired_F: Tensor, window: int) -> Tensor | None:
        """Which latents have not fired for ``window`` tokens; None when it is known to be none."""
        return since_fired_F >= window

    def count_tokens_since_fired(self, since_fired_F: Tensor, rows: int) -> None:
        """Count the rows of the last update for the latents that did not fire in it."""
        since_fired_F.add_(rows).masked_fill_(self.fired_F, 0)

    @abstractmethod
    def gradients(
        self, x_BD: Tensor, dead_F: Tensor | None, sparsity_fraction: float
    ) -> tuple[float, float]:
        """The loss of a batch and the norm of its gradient, before clipping; nothing moves yet."""

    @abstractmethod
    def update(self, lr: float) -> None:
        """Follow the gradients."""

    def release(self) -> None:
        """Give up all memory but the model's: there will be no further step."""
        self.adam_state.clear()
        self.model.zero_grad()


class ReferenceStep(Step):
    """Autograd and torch's own Adam."""

    name = "torch"

    def __init__(self, model: SAE, training: TrainingConfig):
        super().__init__(model, training)
        self.optimizer = torch.optim.Adam(model.parameters(), betas=BETAS, eps=EPSILON, fused=True)
        self.adam_state = self.optimizer.state

    def gradients(
        self, x_BD: Tensor, dead_F: Tensor | None, sparsity_fraction: float
    ) -> tuple[float, float]:
        if dead_F is None:
            dead_F = torch.zeros_like(self.model.b_enc, dtype=torch.bool)
        halved = self.training.precision == "bfloat16"
        with torch.autocast(x_BD.device.type, torch.bfloat16, enabled=halved):
            loss, features_BF = self.model.loss(x_BD * self.scale, dead_F, sparsity_fraction)
        self._features_BF = features_BF.detach()
        self.optimizer.zero_grad()
        loss.backward()
        self.model.remove_parallel_gradient()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.gradient_clip)
        return float(loss.detach()), float(norm)

    def update(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.model.constrain()
        self.model.observe(self._features_BF)
        self.fired_F = (self._features_BF > 0).any(dim=0)
