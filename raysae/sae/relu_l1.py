"""ReLU-L1: the classic SAE with an L1 penalty; optionally decorrelates decoder rows.

Bricken et al. 2023, "Towards monosemanticity", with the penalty λ Σ f‖W_dec‖ of Conerly et al.
2024, "Update on how we train SAEs", which on decoder rows of unit norm is λ Σ f. Shapes: B batch, D
d_in, F d_sae.
"""

from torch import Tensor

from raysae.sae.base import SAE, squared_error
from raysae.sae.config import ReLUL1Config
from raysae.sae.dictionary import mean_square_cosine


class ReLUL1SAE(SAE):
    """ReLU SAE with an L1 penalty and, optionally, a penalty on decoder correlations."""

    config: ReLUL1Config

    def activate(self, preactivations_BF: Tensor) -> Tensor:
        """Features ``[batch, d_sae]``: ReLU of the pre-activations."""
        return preactivations_BF.relu()

    def loss(
        self, x_BD: Tensor, dead_F: Tensor, sparsity_fraction: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """See ``SAE.loss``; squared error, L1 penalty and decorrelation penalty."""
        features_BF = self.encode(x_BD)
        l1 = features_BF.sum(dim=1).mean()
        loss = squared_error(x_BD, self.decode(features_BF))
        loss = loss + sparsity_fraction * self.config.l1_coefficient * l1
        if self.config.decorrelation_coefficient:
            correlation = mean_square_cosine(self.W_dec)
            loss = loss + self.config.decorrelation_coefficient * correlation
        return loss, features_BF
