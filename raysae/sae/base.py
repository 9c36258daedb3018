"""The base of every SAE variant: parameters, initialisation, encode, decode, unit norm.

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
    """The result of ``sae(x)``; unpacks as ``reconstruction, features, metrics``."""

    reconstruction: Tensor
    """``[batch, d_in]``, in the units of ``x``."""
    features: Tensor
    """``[batch, d_sae]``, non-negative."""
    metrics: dict[str, float]
    """explained_variance, fvu, mse, cosine, l0 and sparsity over this batch."""


class SAE(nn.Module):
    """A sparse autoencoder: x - b_dec -> W_enc, b_enc -> activation -> W_dec, b_dec.

    ``W_enc [d_in, d_sae]`` starts as the transpose of ``W_dec [d_sae, d_in]``, whose rows have unit
    norm (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2.1 and appendix
    A). A subclass gives the activation function and the loss.
    """

    config: SAEConfig
    in_units_of_x: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")
    """Parameters and buffers that scale with the input while the weight matrices stay the same."""

    def __init__(self, config: Any, d_in: int, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.d_in = d_in
        self.metadata: Mapping[str, Any] = {}
        """JSON values saved with the SAE, such as the origin of its activations and its metrics."""
        W_dec_FD = torch.randn(config.d_sae, d_in, generator=generator)
        W_dec_FD.div_(W_dec_FD.norm(dim=1, keepdim=True))
        self.W_dec = nn.Parameter(W_dec_FD)
        self.W_enc = nn.Parameter(W_dec_FD.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def activate(self, preactivations_BF: Tensor) -> Tensor:
        """Features from pre-activations, both ``[batch, d_sae]``; each variant defines its own."""
        raise AssertionError(f"{type(self).__name__} must define activate")

    def loss(
        self, x_BD: Tensor, dead_F: Tensor, sparsity_fraction: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """The training loss (a scalar: sum over d_in, mean over the batch) and the features.

        ``dead_F [d_sae]`` marks the latents that count as dead at this step. ``sparsity_fraction``,
        0 to 1, is the fraction of the sparsity coefficient that its warm-up allows at this step.
        """
        raise AssertionError(f"{type(self).__name__} must define loss")

    def preactivations(self, x_BD: Tensor) -> Tensor:
        """Pre-activations ``[batch, d_sae]`` of rows ``[batch, d_in]``."""
        return (x_BD - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Features ``[batch, d_sae]`` of activations ``[batch, d_in]``."""
        return self.activate(self.preactivations(x))

    def decode(self, features: Tensor) -> Tensor:
        """Reconstruction ``[batch, d_in]`` from features ``[batch, d_sae]``."""
        return features @ self.W_dec + self.b_dec

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction ``[batch, d_in]``, features ``[batch, d_sae]`` of ``x [batch, d_in]``."""
        features = self.encode(x)
        return self.decode(features), features

    def forward(self, x: Tensor) -> SAEOutput:
        """Reconstruction, features and batch metrics of ``x [..., d_in]``.

        Raises ValueError when ``x`` is no tensor of floats, has no rows, or its last dimension is not
        ``d_in``.
        """
        self._refuse_unreadable(x)
        rows = x.reshape(-1, self.d_in).to(self.W_dec)
        reconstruction, features = self.reconstruct(rows)
        with torch.no_grad():
            sums = ReconstructionSums.of_rows(rows)
            sums.update(rows, reconstruction, features)
        shape = x.shape[:-1]
        return SAEOutput(
            reconstruction.reshape(*shape, self.d_in), features.reshape(*shape, -1), sums.metrics()
        )

    def _refuse_unreadable(self, x: Any) -> None:
        wanted = f"this SAE reads tensors [..., {self.d_in}] of floats"
        if not isinstance(x, Tensor):
            hint = "; torch.from_numpy(x) makes one" if hasattr(x, "__array__") else ""
            raise ValueError(f"x is {type(x).__name__}; {wanted}{hint}")
        if not x.is_floating_point():
            raise ValueError(f"x holds {str(x.dtype).removeprefix('torch.')}; {wanted}")
        if not x.dim() or x.shape[-1] != self.d_in:
            raise ValueError(f"x is {list(x.shape)}; this SAE reads rows of d_in {self.d_in}")
        if not x.numel():
            raise ValueError(f"x is {list(x.shape)}: it has no rows")

    def save(self, folder: str | Path) -> None:
        """Write ``cfg.json`` and ``sae.safetensors`` into ``folder``; ``load_sae`` reads them.

        Raises what ``save_sae`` raises.
        """
        from raysae.sae.checkpoint import save_sae  # here, as that module imports this one

        save_sae(self, folder)

    @torch.no_grad()
    def observe(self, features_BF: Tensor) -> None:
        """Update values that have no gradient from a training batch's features ``[batch, d_sae]``.

        Most variants have no such values.
        """

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the parameters back to their allowed values after an update, in place."""
        self.normalize_decoder()

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Scale every decoder row to unit norm, in place; a frozen decoder stays as it is."""
        if not self.W_dec.requires_grad:
            return
        smallest = torch.finfo(torch.float32).tiny
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(smallest))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Remove the part of the decoder's gradient that only changes the rows' norms, in place.

        A frozen decoder has no gradient.
        """
        if not self.W_dec.requires_grad:
            return
        gradient_FD = self.W_dec.grad
        assert gradient_FD is not None, "called before backward"
        along_F = (gradient_FD * self.W_dec).sum(dim=1, keepdim=True)
        gradient_FD.addcmul_(along_F, self.W_dec, value=-1)

    @torch.no_grad()
    def fold_scale(self, scale: float) -> Self:
        """Change an SAE trained on ``scale * x`` so that it reads ``x``, in place.

        Decoder rows still have unit norm, and features are divided by ``scale``. The same latents
        are active, because every activation function commutes with a positive factor when its
        thresholds are divided by it, too.
        """
        for name in self.in_units_of_x:
            self.get_parameter_or_buffer(name).div_(scale)
        return self

    @torch.no_grad()
    def fold_mean(self, mean_D: Tensor) -> Self:
        """Change an SAE trained on ``x - mean_D`` so that it reads ``x``, in place.

        Only ``b_dec`` changes, which the encoder subtracts and the decoder adds.
        """
        self.b_dec.add_(mean_D)
        return self

    def get_parameter_or_buffer(self, name: str) -> Tensor:
        """The parameter or buffer of that name. Raises KeyError when there is none."""
        return self.state_dict(keep_vars=True)[name]


def squared_error(x_BD: Tensor, reconstruction_BD: Tensor) -> Tensor:
    """The reconstruction loss, a scalar: sum over d_in, mean over the batch."""
    return (x_BD - reconstruction_BD).square().sum(dim=1).mean()
