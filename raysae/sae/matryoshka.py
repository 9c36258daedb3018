"""Matryoshka: every prefix of the dictionary must reconstruct alone, so general latents come first.

Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse autoencoders", equation
7, on top of BatchTopK. Shapes: B batch, D d_in, F d_sae.
"""

from torch import Tensor

from raysae.sae.batch_topk import BatchKSAE
from raysae.sae.config import MatryoshkaConfig


class MatryoshkaSAE(BatchKSAE):
    """BatchTopK SAE whose loss is the weighted mean of its prefixes' reconstruction losses."""

    config: MatryoshkaConfig

    def reconstruction_loss(self, x_BD: Tensor, features_BF: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted mean of the prefixes' losses, and the last one's error ``[batch, d_in]``."""
        loss, start, error_BD = x_BD.new_zeros(()), 0, x_BD - self.b_dec
        for width, weight in zip(self.config.widths, self.config.width_weights, strict=True):
            error_BD = error_BD - features_BF[:, start:width] @ self.W_dec[start:width]
            loss = loss + weight * error_BD.square().sum(dim=1).mean()
            start = width
        return loss, error_BD
