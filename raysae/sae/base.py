"""What every SAE variant shares: parameters, initialisation, encode, decode, norm keeping.

Shapes: B batch, D d_in, F d_sae.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from raysae.sae.config import SAEConfig
from raysae.sae.metrics import ReconstructionSums


class SAEOutput(NamedTuple):
    """What ``sae(x)`` gives; unpacks as ``reconstruction, features, metrics``."""

    reconstruction: Tensor
    """``[batch, d_in]``, in the units of ``x``."""
    features: Tensor
    """``[batch, d_sae]``, non-negative."""
    metrics: dict[str, float]
    """explained_variance, fvu, mse, cosine, l0 and sparsity over this batch."""


class SAE(nn.Module):
    """A sparse autoencoder: x - b_dec -> W_enc, b_enc -> activation -> W_dec, b_dec.

    ``W_enc [d_in, d_sae]`` starts as the transpose of ``W_dec [d_sae, d_in]``, whose rows have unit
    norm (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2.1 and appendix A).
    A subclass gives the activation function and the loss.
    """

    config: SAEConfig
    in_units_of_x: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")
    """Parameters and buffers that scale with the input when the weights are left as they are."""

    def __init__(self, config: Any, d_in: int, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.d_in = d_in
        self.metadata: Mapping[str, Any] = {}
        """JSON values that travel with the SAE: where its activations came from, its figures."""
        W_dec_FD = torch.randn(config.d_sae, d_in, generator=generator)
        W_dec_FD.div_(W_dec_FD.norm(dim=1, keepdim=True))
        self.W_dec = nn.Parameter(W_dec_FD)
        self.W_enc = nn.Parameter(W_dec_FD.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def activate(self, preactivations_BF: Tensor) -> Tensor:
        """Pre-activations to features, both ``[batch, d_sae]``: what makes a variant."""
        raise AssertionError(f"{type(self).__name__} must define activate")

    def loss(
        self, x_BD: Tensor, dead_F: Tensor, sparsity_fraction: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """The training loss (a scalar: sum over d_in, mean over the batch) and the features.

        ``dead_F`` marks the latents that count as dead at this step; ``sparsity_fraction`` is how
        much of the sparsity coefficient holds at this step of its warm-up.
        """
        raise AssertionError(f"{type(self).__name__} must define loss")

    def preactivations(self, x_BD: Tensor) -> Tensor:
        """``[batch, d_sae]`` from rows ``[batch, d_in]``."""
        return (x_BD - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Features ``[batch, d_sae]`` of activations ``[batch, d_in]``."""
        return self.activate(self.preactivations(x))

    def decode(self, features: Tensor) -> Tensor:
        """Reconstruction ``[batch, d_in]`` from features ``[batch, d_sae]``."""
        return features @ self.W_dec + self.b_dec

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and features of ``x [batch, d_in]``."""
        features = self.encode(x)
        return self.decode(features), features

    def forward(self, x: Tensor) -> SAEOutput:
        """Reconstruction, features and batch metrics of ``x [batch, d_in]``.

        Raises ValueError when the last dimension of ``x`` is not ``d_in``.
        """
        if x.shape[-1] != self.d_in:
            raise ValueError(f"x is {list(x.shape)}; this SAE reads rows of d_in {self.d_in}")
        rows = x.reshape(-1, self.d_in).to(self.W_dec)
        reconstruction, features = self.reconstruct(rows)
        with torch.no_grad():
            sums = ReconstructionSums.of_rows(rows)
            sums.update(rows, reconstruction, features)
        shape = x.shape[:-1]
        return SAEOutput(
            reconstruction.reshape(*shape, self.d_in), features.reshape(*shape, -1), sums.metrics()
        )

    def save(self, folder: str | Path) -> None:
        """Write ``cfg.json`` and ``sae.safetensors`` into ``folder``; ``load_sae`` reads them."""
        from raysae.sae.checkpoint import save_sae  # it builds SAEs, so it imports this module

        save_sae(self, folder)

    @torch.no_grad()
    def observe(self, features_BF: Tensor) -> None:
        """Learn from a training batch's features what no gradient teaches; most variants nothing."""

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the parameters back to where they are allowed, in place, after an update."""
        self.normalize_decoder()

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Bring every decoder row back to unit norm, in place."""
        smallest = torch.finfo(torch.float32).tiny
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(smallest))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Drop the part of the decoder's gradient that would only change the rows' norms."""
        gradient_FD = self.W_dec.grad
        assert gradient_FD is not None, "called before backward"
        along_F = (gradient_FD * self.W_dec).sum(dim=1, keepdim=True)
        gradient_FD.addcmul_(along_F, self.W_dec, value=-1)

    @torch.no_grad()
    def fold_scale(self, scale: float) -> Self:
        """Let an SAE trained on ``scale * x`` read ``x`` itself, in place; decoder rows keep unit norm.

        Features come out divided by ``scale``; which latents are active does not change, as every
        activation commutes with a positive factor once its thresholds are divided, too.
        """
        for name in self.in_units_of_x:
            self.get_parameter_or_buffer(name).div_(scale)
        return self

    def get_parameter_or_buffer(self, name: str) -> Tensor:
        """The tensor of that name in the state dict."""
        return self.state_dict(keep_vars=True)[name]


def squared_error(x_BD: Tensor, reconstruction_BD: Tensor) -> Tensor:
    """The reconstruction loss: sum over d_in, mean over the batch."""
    return (x_BD - reconstruction_BD).square().sum(dim=1).mean()
