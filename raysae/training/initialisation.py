"""Initial values of the weights: the decoder bias and the size of the encoder.

Shapes: B batch, D d_in.
"""

import torch
from torch import Tensor

from raysae.sae import SAE
from raysae.sae.topk import KSAE

ENCODER_SIZE = 0.05


def geometric_median(x_BD: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point ``[d_in]`` with the least sum of distances to the rows (Weiszfeld's algorithm).

    It ends when a step is at most ``tolerance`` times the rows' spread.
    """
    mean_D = x_BD.mean(dim=0)
    x_BD = x_BD - mean_D  # a common offset would cost the squares below their precision
    square_B = x_BD.square().sum(dim=1)
    spread = float(square_B.mean().sqrt())
    median_D = torch.zeros_like(mean_D)
    for _ in range(iterations):
        distance_B = (
            (square_B - 2 * (x_BD @ median_D) + median_D.square().sum()).clamp_min(0).sqrt()
        )
        weight_B = 1 / distance_B.clamp_min(max(1e-9 * spread, 1e-30))
        moved_D = (weight_B @ x_BD) / weight_B.sum()
        step = float((moved_D - median_D).norm())
        median_D = moved_D
        if step <= tolerance * spread:
            break
    return mean_D + median_D


@torch.no_grad()
def shrink_encoder(model: SAE) -> None:
    """Scale the initial encoder of TopK variants to ``ENCODER_SIZE`` of the decoder's size, in
    place.

    The size does not change which latents are selected. But reconstructions start small, and Adam
    turns small rows faster, which helps short trainings: 50 steps reach an explained variance of
    0.53 instead of 0.47 (d_in 768, d_sae 6144, k 64). After thousands of steps there is no
    difference. SAELens uses a factor of 0.1.
    """
    if isinstance(model, KSAE):
        model.W_enc.mul_(ENCODER_SIZE)
