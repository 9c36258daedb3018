"""Matryoshka: every prefix of the dictionary reconstructs alone, so that general latents come first.

Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse autoencoders", equation
7, on top of BatchTopK. Shapes: B batch, D d_in, F d_sae.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor

from raysae.sae.batch_topk import BatchKConfig, BatchKSAE


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(BatchKConfig):
    """Matryoshka BatchTopK: nested dictionaries in one."""

    variant: Literal["matryoshka"] = "matryoshka"
    """BatchTopK whose prefixes reconstruct alone, too."""
    prefixes: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0)
    """The nested dictionaries, as rising shares of d_sae; the last is 1."""
    prefix_weights: tuple[float, ...] | None = None
    """Weight of each prefix's reconstruction, scaled to a sum of 1; null weighs all alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "prefixes", tuple(self.prefixes))
        rising = all(low < high for low, high in pairwise(self.prefixes))
        if not self.prefixes or self.prefixes[0] <= 0 or self.prefixes[-1] != 1 or not rising:
            raise ValueError(
                f"prefixes are {list(self.prefixes)}; they must rise from above 0 to 1, as shares "
                "of d_sae"
            )
        if self.prefix_weights is not None:
            object.__setattr__(self, "prefix_weights", tuple(self.prefix_weights))
            self._check_weights(self.prefix_weights)

    def _check_weights(self, weights: tuple[float, ...]) -> None:
        good = all(math.isfinite(weight) and weight >= 0 for weight in weights) and sum(weights) > 0
        if len(weights) != len(self.prefixes) or not good:
            raise ValueError(
                f"prefix_weights are {list(weights)}; give one for each of the "
                f"{len(self.prefixes)} prefixes, none negative and not all 0"
            )

    @property
    def widths(self) -> list[int]:
        """Latents in each prefix; shares of a small dictionary that round to the same are one."""
        return sorted({max(round(share * self.d_sae), 1) for share in self.prefixes})

    @property
    def width_weights(self) -> list[float]:
        """The weight of each of ``widths``, with a sum of 1."""
        given = self.prefix_weights or (1.0,) * len(self.prefixes)
        by_width = dict.fromkeys(self.widths, 0.0)
        for share, weight in zip(self.prefixes, given, strict=True):
            by_width[max(round(share * self.d_sae), 1)] += weight
        return [weight / sum(given) for weight in by_width.values()]


class MatryoshkaSAE(BatchKSAE):
    """BatchTopK SAE whose loss is the weighted mean of its prefixes' reconstruction losses."""

    Config = MatryoshkaConfig
    config: MatryoshkaConfig

    def reconstruction_loss(self, x_BD: Tensor, features_BF: Tensor) -> tuple[Tensor, Tensor]:
        loss, start, error_BD = x_BD.new_zeros(()), 0, x_BD - self.b_dec
        for width, weight in zip(self.config.widths, self.config.width_weights, strict=True):
            error_BD = error_BD - features_BF[:, start:width] @ self.W_dec[start:width]
            loss = loss + weight * error_BD.square().sum(dim=1).mean()
            start = width
        return loss, error_BD
