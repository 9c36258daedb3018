"""TopK: the k largest pre-activations of a row stay, the rest are zero.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", equations 3 and 4 and appendix A.2
(AuxK). Shapes: B batch, D d_in, F d_sae.
"""

import torch
from torch import Tensor

from raysae.sae.base import SAE
from raysae.sae.config import KConfig


def top_k(preactivations_BF: Tensor, k: int) -> Tensor:
    """Keep each row's k largest entries, with ReLU; everything else becomes 0."""
    values_BK, indices_BK = preactivations_BF.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(preactivations_BF).scatter(-1, indices_BK, values_BK.relu())


class KSAE(SAE):
    """What all variants of the TopK kind share: a selection by rank, and AuxK."""

    config: KConfig

    def select(self, preactivations_BF: Tensor) -> Tensor:
        """The features ``[batch, d_sae]`` while training."""
        return self.activate(preactivations_BF)

    def loss(
        self, x_BD: Tensor, dead_F: Tensor, sparsity_fraction: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        preactivations_BF = self.preactivations(x_BD)
        features_BF = self.select(preactivations_BF)
        loss, error_BD = self.reconstruction_loss(x_BD, features_BF)
        if self.config.aux_coefficient and bool(dead_F.any()):
            aux = self._aux_k(preactivations_BF, error_BD.detach(), dead_F)
            loss = loss + self.config.aux_coefficient * aux
        return loss, features_BF

    def reconstruction_loss(self, x_BD: Tensor, features_BF: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the reconstruction, and the whole dictionary's error ``[batch, d_in]``."""
        error_BD = x_BD - self.decode(features_BF)
        return error_BD.square().sum(dim=1).mean(), error_BD

    def _aux_k(self, preactivations_BF: Tensor, error_BD: Tensor, dead_F: Tensor) -> Tensor:
        """The FVU of the error when the ``d_in / 2`` most active dead latents reconstruct it, times d_in.

        The factor puts it on the scale of the loss: inputs have mean square norm d_in, so the loss
        is about d_in times the FVU. Only the columns of dead latents are touched.
        """
        dead_index = dead_F.nonzero().squeeze(1)
        k_aux = min(max(self.d_in // 2, 1), len(dead_index))
        dead_features = top_k(preactivations_BF[:, dead_index], k_aux)
        residual_BD = error_BD - dead_features @ self.W_dec[dead_index]
        variance = (error_BD - error_BD.mean(dim=0)).square().sum(dim=1).mean()
        return self.d_in * residual_BD.square().sum(dim=1).mean() / variance.clamp_min(1e-12)


class TopKSAE(KSAE):
    """TopK SAE with the AuxK loss."""

    def activate(self, preactivations_BF: Tensor) -> Tensor:
        return top_k(preactivations_BF, self.config.k)
