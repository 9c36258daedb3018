"""JumpReLU: pre-activations above their latent's learned threshold are active, all others are zero.

Rajamanoharan et al. 2024, "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse
autoencoders", equations 2, 9, 11 and 12: an L0 penalty, and straight-through estimates of the
threshold's gradient with a rectangle kernel. The parameter is the threshold itself and not its
logarithm: Adam changes a parameter by about lr per step, and such a change of the logarithm hardly
changes a small threshold. Shapes: B batch, F d_sae.
"""

from typing import Any

import torch
from torch import Tensor, nn

from raysae.sae.base import SAE, squared_error
from raysae.sae.config import JumpReLUConfig


def _window(preactivations_BF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
    """The rectangle kernel K((z - θ) / ε) / ε."""
    near_BF = (preactivations_BF - threshold_F).abs() < bandwidth / 2
    return near_BF.to(preactivations_BF.dtype) / bandwidth


class _JumpReLU(torch.autograd.Function):
    """z·H(z - θ), with the pseudo-derivative -θ K((z - θ) / ε) / ε for θ (equation 11)."""

    @staticmethod
    def forward(ctx: Any, z_BF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z_BF, threshold_F)
        ctx.bandwidth = bandwidth
        return z_BF * (z_BF > threshold_F).to(z_BF.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient_BF,) = gradients
        z_BF, threshold_F = ctx.saved_tensors
        window_BF = _window(z_BF, threshold_F, ctx.bandwidth)
        for_threshold_F = -(threshold_F * (window_BF * gradient_BF).sum(dim=0))
        return gradient_BF * (z_BF > threshold_F).to(z_BF.dtype), for_threshold_F, None


class _L0(torch.autograd.Function):
    """L0 ``[batch]``, with the pseudo-derivative -K((z - θ) / ε) / ε for θ (equation 12)."""

    @staticmethod
    def forward(ctx: Any, z_BF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z_BF, threshold_F)
        ctx.bandwidth = bandwidth
        return (z_BF > threshold_F).to(z_BF.dtype).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient_B,) = gradients
        z_BF, threshold_F = ctx.saved_tensors
        window_BF = _window(z_BF, threshold_F, ctx.bandwidth)
        return None, -(window_BF * gradient_B[:, None]).sum(dim=0), None


class JumpReLUSAE(SAE):
    """JumpReLU SAE with an L0 penalty."""

    config: JumpReLUConfig
    in_units_of_x = ("b_enc", "b_dec", "threshold")

    def __init__(self, config: JumpReLUConfig, d_in: int, generator: torch.Generator | None = None):
        super().__init__(config, d_in, generator)
        self.threshold = nn.Parameter(torch.full((config.d_sae,), config.initial_threshold))

    def activate(self, preactivations_BF: Tensor) -> Tensor:
        """Features ``[batch, d_sae]``: pre-activations above their threshold, others 0."""
        above_BF = preactivations_BF > self.threshold
        return preactivations_BF * above_BF.to(preactivations_BF.dtype)

    def loss(
        self, x_BD: Tensor, dead_F: Tensor, sparsity_fraction: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """See ``SAE.loss``; equation 9 of the paper."""
        z_BF, bandwidth = self.preactivations(x_BD), self.config.bandwidth
        features_BF = _JumpReLU.apply(z_BF, self.threshold, bandwidth)
        # detached: the penalty has a gradient for the thresholds only, as in the paper
        l0 = _L0.apply(z_BF.detach(), self.threshold, bandwidth).mean()
        coefficient = sparsity_fraction * self.config.l0_coefficient
        return squared_error(x_BD, self.decode(features_BF)) + coefficient * l0, features_BF

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale decoder rows to unit norm and make thresholds non-negative, in place."""
        super().constrain()
        self.threshold.clamp_(min=0)
