"""BatchTopK: the k·B largest activations of a batch of B rows stay, the rest are zero.

Bussmann et al. 2024, "BatchTopK sparse autoencoders", equations 4 to 6. A row alone has no batch, so
afterwards a latent is active above a threshold: an exponential moving average of the smallest active
value of the training batches. Shapes: B batch, F d_sae.
"""

import torch
from torch import Tensor

from raysae.sae.config import BatchKConfig
from raysae.sae.topk import KSAE


def batch_top_k(preactivations_BF: Tensor, k: int) -> Tensor:
    """Keep the batch's ``k * batch`` largest entries after ReLU; everything else becomes 0."""
    flat = preactivations_BF.relu().flatten()
    values, indices = flat.topk(k * len(preactivations_BF), sorted=False)
    return torch.zeros_like(flat).scatter(0, indices, values).view_as(preactivations_BF)


class BatchKSAE(KSAE):
    """Trained with a selection over the batch, used with one threshold for all latents."""

    in_units_of_x = ("b_enc", "b_dec", "threshold")
    config: BatchKConfig
    threshold: Tensor

    def __init__(self, config: BatchKConfig, d_in: int, generator: torch.Generator | None = None):
        super().__init__(config, d_in, generator)
        self.register_buffer("threshold", torch.zeros(()))

    def activate(self, preactivations_BF: Tensor) -> Tensor:
        # clamped, as an imported threshold may be negative and features may not
        above_BF = preactivations_BF > self.threshold.clamp_min(0)
        return preactivations_BF * above_BF.to(preactivations_BF.dtype)

    def select(self, preactivations_BF: Tensor) -> Tensor:
        return batch_top_k(preactivations_BF, self.config.k)

    @torch.no_grad()
    def observe(self, features_BF: Tensor) -> None:
        """Move the threshold towards the smallest active value of the batch."""
        self.move_threshold(torch.where(features_BF > 0, features_BF, torch.inf).amin().float())

    @torch.no_grad()
    def move_threshold(self, smallest: Tensor) -> None:
        """Move the threshold towards ``smallest``; not at all where that is infinite: none was active."""
        rate = torch.where(self.threshold > 0, self.config.threshold_rate, 1.0)
        moved = torch.lerp(self.threshold, smallest, rate.to(smallest))
        self.threshold.copy_(torch.where(smallest.isfinite(), moved, self.threshold))


class BatchTopKSAE(BatchKSAE):
    """BatchTopK SAE with the AuxK loss."""
