"""SAEs in which every parameter does something, as after training, and rows for them.

Everything that decides which latents are active lies on a grid so coarse that float32 adds it up
exactly, in whatever order a library adds: no rounding moves a latent over its threshold.
"""

import torch
from torch import Tensor

from raysae.sae import SAE, build_sae, sae_config

D_IN, D_SAE, K = 24, 64, 8
METADATA = {
    "layer": 8,
    "hookpoint": "resid_post",
    "model": {"id": "gpt2"},
    "dataset": {"id": "some/texts"},
    "context_length": 128,
    "training": {"lr": 3e-4, "steps": 1000, "seed": 5},
}


def lively(variant: str, norms: bool = False) -> SAE:
    """An SAE of ``variant`` with random weights and biases; its decoder rows have unit norm unless
    ``norms`` asks for others."""
    settings = {"variant": variant, "d_sae": D_SAE}
    if variant in ("topk", "batch_topk", "matryoshka", "hierarchical_topk"):
        settings["k"] = K
    sae, generator = build_sae(sae_config(settings), D_IN, seed=3), torch.Generator().manual_seed(7)
    for name, tensor in sae.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name == "W_enc":
            tensor.copy_(on_grid(noise / 4, 2**-10))
        elif name == "threshold":
            tensor.copy_(between_grid(0.8 + noise.clamp(-2, 2) / 4))
        elif name == "W_dec" and norms:
            tensor.mul_(noise[:, :1].exp())
        elif name != "W_dec":
            tensor.copy_(on_grid(0.3 * noise))
    sae.metadata = METADATA
    return sae


def rows(count: int = 200) -> Tensor:
    """``[count, d_in]``, off the origin."""
    noise = torch.randn(count, D_IN, generator=torch.Generator().manual_seed(11))
    return on_grid(noise + torch.linspace(-1, 1, D_IN))


def on_grid(tensor: Tensor, step: float = 2**-8) -> Tensor:
    return (tensor / step).round() * step


def between_grid(threshold: Tensor) -> Tensor:
    """Thresholds that no sum of products of the above can equal."""
    return on_grid(threshold) + 2**-19
