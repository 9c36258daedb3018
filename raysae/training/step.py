"""One update of one SAE: compute gradients, then, when they are finite, make Adam's step.

``ReferenceStep`` is plain torch and trains every variant; ``raysae.training.compiled`` does the
same mathematics for TopK and BatchTopK on CPUs. Shapes: B batch, D d_in, F d_sae.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from raysae.sae import SAE
from raysae.training.config import TrainingConfig

BETAS, EPSILON = (0.9, 0.999), 1e-8


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Matrix products on a GPU in TF32, if that is the ``precision``, while the block runs.

    Else as this process has them: without TF32, unless somebody has asked torch for it.
    """
    if precision != "tf32":
        yield
        return
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        yield
    finally:
        settings.fp32_precision = before


class Step(ABC):
    """The interface of a step: it trains ``model`` in place."""

    name: str
    scale = 1.0
    mean_D: Tensor
    """The SAE is trained on ``scale * (x - mean)``; ``mean_D [d_in]`` is 0 until it is set."""
    fired_F: Tensor
    """The latents that fired in the batch of the last update, ``[d_sae]`` of bool."""

    def __init__(self, model: SAE, training: TrainingConfig):
        self.model, self.training = model, training
        self.mean_D = torch.zeros_like(model.b_dec, requires_grad=False)
        self.adam_state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        """Each parameter's moments and step count, under the names that torch's Adam uses."""

    def dead(self, since_fired_F: Tensor, window: int) -> Tensor | None:
        """Latents ``[d_sae]`` that did not fire for ``window`` tokens; None: there are none."""
        return since_fired_F >= window

    def count_tokens_since_fired(self, since_fired_F: Tensor, rows: int) -> None:
        """Add the last update's ``rows`` to ``since_fired_F``; latents that fired get 0."""
        since_fired_F.add_(rows).masked_fill_(self.fired_F, 0)

    @abstractmethod
    def gradients(
        self, x_BD: Tensor, dead_F: Tensor | None, sparsity_fraction: float
    ) -> tuple[float, float]:
        """The loss of a batch ``[batch, d_in]`` and the norm of its gradient before clipping.

        No weight changes yet. ``dead_F`` and ``sparsity_fraction`` are those of ``SAE.loss``.
        """

    @abstractmethod
    def update(self, lr: float) -> None:
        """Update the weights by the last gradients, with learning rate ``lr``."""

    def release(self) -> None:
        """Free all memory except the model's; no step can follow."""
        self.adam_state.clear()
        self.model.zero_grad()


class ReferenceStep(Step):
    """A step with autograd and torch's own Adam."""

    name = "torch"

    def __init__(self, model: SAE, training: TrainingConfig):
        super().__init__(model, training)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(trained, betas=BETAS, eps=EPSILON, fused=True)
        self.adam_state = self.optimizer.state

    def gradients(
        self, x_BD: Tensor, dead_F: Tensor | None, sparsity_fraction: float
    ) -> tuple[float, float]:
        """See ``Step.gradients``."""
        if dead_F is None:
            dead_F = torch.zeros_like(self.model.b_enc, dtype=torch.bool)
        halved = self.training.precision == "bfloat16"
        inputs_BD = (x_BD - self.mean_D) * self.scale  # in float32, also where products are not
        self.optimizer.zero_grad()
        with products_in(self.training.precision):
            with torch.autocast(x_BD.device.type, torch.bfloat16, enabled=halved):
                loss, features_BF = self.model.loss(inputs_BD, dead_F, sparsity_fraction)
            loss.backward()
        self._features_BF = features_BF.detach()
        self.model.remove_parallel_gradient()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.gradient_clip)
        return float(loss.detach()), float(norm)

    def update(self, lr: float) -> None:
        """Make Adam's step, then bring the parameters back to their constraints."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.model.constrain()
        self.model.observe(self._features_BF)
        self.fired_F = (self._features_BF > 0).any(dim=0)
