"""Gated: a gate decides which latents are active, and magnitudes decide how strongly.

Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", equations
6 to 8. Gate and magnitudes share their weights up to a factor exp(r_mag) for each latent. The loss
has an L1 penalty on relu(gate), and the gate's own reconstruction through a frozen decoder. Shapes:
B batch, D d_in, F d_sae.
"""

import torch
from torch import Tensor, nn

from raysae.sae.base import SAE, squared_error
from raysae.sae.config import GatedConfig


class GatedSAE(SAE):
    """Gated SAE. ``b_enc`` is the gate's bias (b_gate in the paper)."""

    config: GatedConfig
    in_units_of_x = ("b_enc", "b_dec", "b_mag")

    def __init__(self, config: GatedConfig, d_in: int, generator: torch.Generator | None = None):
        super().__init__(config, d_in, generator)
        self.b_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(config.d_sae))

    def activate(self, preactivations_BF: Tensor) -> Tensor:
        """Features ``[batch, d_sae]``: the magnitudes of latents with an open gate, others 0."""
        magnitude_BF = (preactivations_BF - self.b_enc) * self.r_mag.exp() + self.b_mag
        return magnitude_BF.relu() * (preactivations_BF > 0).to(magnitude_BF.dtype)

    def loss(
        self, x_BD: Tensor, dead_F: Tensor, sparsity_fraction: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """See ``SAE.loss``; equation 8 of the paper."""
        gate_BF = self.preactivations(x_BD)
        features_BF = self.activate(gate_BF)
        open_BF = gate_BF.relu()
        through_gate_BD = open_BF @ self.W_dec.detach() + self.b_dec.detach()
        l1 = open_BF.sum(dim=1).mean()  # decoder rows have unit norm
        loss = squared_error(x_BD, self.decode(features_BF)) + squared_error(x_BD, through_gate_BD)
        return loss + sparsity_fraction * self.config.l1_coefficient * l1, features_BF
