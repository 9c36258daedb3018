"""TopK: the k largest pre-activations of a row are active, all others are zero.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", equations 3 and 4 and appendix A.2
(AuxK). Shapes: B batch, D d_in, F d_sae.
"""

import torch
from torch import Tensor

from raysae.sae.base import SAE
from raysae.sae.config import KConfig


def top_k(preactivations_BF: Tensor, k: int) -> Tensor:
    """Each row's k largest entries after ReLU, ``[batch, d_sae]``; all others are 0."""
    values_BK, indices_BK = preactivations_BF.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(preactivations_BF).scatter(-1, indices_BK, values_BK.relu())


class KSAE(SAE):
    """The base of all variants that select by rank: the selection and the AuxK loss."""

    config: KConfig

    def select(self, preactivations_BF: Tensor) -> Tensor:
        """The features ``[batch, d_sae]`` in training, from pre-activations of that shape."""
        return self.activate(preactivations_BF)

    def loss(
        self, x_BD: Tensor, dead_F: Tensor, sparsity_fraction: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """See ``SAE.loss``; the AuxK loss is added when some latents are dead."""
        preactivations_BF = self.preactivations(x_BD)
        features_BF = self.select(preactivations_BF)
        loss, error_BD = self.reconstruction_loss(x_BD, features_BF)
        if self.config.aux_coefficient and bool(dead_F.any()):
            aux = self._aux_k(preactivations_BF, error_BD.detach(), dead_F)
            loss = loss + self.config.aux_coefficient * aux
        return loss, features_BF

    def reconstruction_loss(self, x_BD: Tensor, features_BF: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction loss, a scalar, and the whole dictionary's error ``[batch, d_in]``."""
        error_BD = x_BD - self.decode(features_BF)
        return error_BD.square().sum(dim=1).mean(), error_BD

    def _aux_k(self, preactivations_BF: Tensor, error_BD: Tensor, dead_F: Tensor) -> Tensor:
        """AuxK: d_in times the FVU of the error's reconstruction by the ``d_in / 2`` most active
        dead latents.

        The factor d_in gives it the scale of the loss: centred inputs have mean square norm d_in, so the
        loss is about d_in times the FVU. Only the columns of dead latents are computed.
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
        """Features ``[batch, d_sae]``: each row's k largest pre-activations after ReLU."""
        return top_k(preactivations_BF, self.config.k)
