"""BatchTopK: the k·B largest activations of a batch of B rows are active, all others are zero.

Bussmann et al. 2024, "BatchTopK sparse autoencoders", equations 4 to 6. After training, the
selection must not depend on the batch: a latent is then active above a threshold, which is an
exponential moving average of the smallest active value of the training batches. Shapes: B batch, F
d_sae.
"""

import torch
from torch import Tensor

from raysae.sae.config import BatchKConfig
from raysae.sae.topk import KSAE


def batch_top_k(preactivations_BF: Tensor, k: int) -> Tensor:
    """The batch's ``k * batch`` largest entries after ReLU, ``[batch, d_sae]``; others are 0."""
    flat = preactivations_BF.relu().flatten()
    values, indices = flat.topk(k * len(preactivations_BF), sorted=False)
    return torch.zeros_like(flat).scatter(0, indices, values).view_as(preactivations_BF)


class BatchKSAE(KSAE):
    """Selects over the batch in training, and by one threshold for all latents afterwards."""

    in_units_of_x = ("b_enc", "b_dec", "threshold")
    config: BatchKConfig
    threshold: Tensor

    def __init__(self, config: BatchKConfig, d_in: int, generator: torch.Generator | None = None):
        super().__init__(config, d_in, generator)
        self.register_buffer("threshold", torch.zeros(()))

    def activate(self, preactivations_BF: Tensor) -> Tensor:
        """Features ``[batch, d_sae]``: the pre-activations above the threshold, all others 0."""
        # an imported threshold may be negative, but features may not
        above_BF = preactivations_BF > self.threshold.clamp_min(0)
        return preactivations_BF * above_BF.to(preactivations_BF.dtype)

    def select(self, preactivations_BF: Tensor) -> Tensor:
        """The features ``[batch, d_sae]`` in training, selected over the batch."""
        return batch_top_k(preactivations_BF, self.config.k)

    @torch.no_grad()
    def observe(self, features_BF: Tensor) -> None:
        """Move the threshold towards the smallest active value of the batch."""
        self.move_threshold(torch.where(features_BF > 0, features_BF, torch.inf).amin().float())

    @torch.no_grad()
    def move_threshold(self, smallest: Tensor) -> None:
        """Move the threshold towards the scalar ``smallest``; infinity changes nothing."""
        rate = torch.where(self.threshold > 0, self.config.threshold_rate, 1.0)
        moved = torch.lerp(self.threshold, smallest, rate.to(smallest))
        self.threshold.copy_(torch.where(smallest.isfinite(), moved, self.threshold))


class BatchTopKSAE(BatchKSAE):
    """BatchTopK SAE with the AuxK loss."""
