"""Reconstruction metrics of an SAE, from sums in float64 over all rows of a split.

Definitions (x data, x̂ reconstruction, x̄ the per-dimension mean over the evaluated rows):

- ``explained_variance`` = 1 - Σ‖x-x̂‖² / Σ‖x-x̄‖²: a ratio of sums, so that the mean predictor
  scores exactly 0; ``fvu`` is its complement.
- ``explained_variance_legacy`` = mean over rows of 1 - ‖x-x̂‖² / ‖x-x̄‖², as in older papers.
- ``mse`` = mean over rows of ‖x-x̂‖² / d_in; ``cosine`` = mean cosine similarity of x and x̂.
- ``l0`` = mean number of active latents per row; ``sparsity`` = l0 / d_sae.
- ``dead_fraction_validation`` = fraction of latents that never fire over the evaluated rows.

Shapes: B batch, D d_in, F d_sae.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Model = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps rows ``[batch, d_in]`` to their reconstruction and features ``[batch, d_sae]``."""

DENSITY_DECADES = range(-6, 1)
"""Edges of the feature-density histogram: log10 of the fraction of rows on which a latent fires."""


class ReconstructionSums:
    """The sums from which the metrics follow; call ``update`` with each batch, then ``metrics``.

    ``mean_D [d_in]`` is the mean of the rows that will be added.
    """

    def __init__(self, mean_D: Tensor):
        self.mean_D = mean_D.to(torch.float64)
        self.rows = 0
        self.rows_off_mean = 0
        self.residual = self.total = self.legacy = self.cosine = self.active = 0.0
        self.fired_F: Tensor | None = None

    @classmethod
    def of_rows(cls, x_BD: Tensor) -> "ReconstructionSums":
        """Sums over one batch, centred on that batch's own mean."""
        return cls(mean_of_rows([x_BD]))

    def update(self, x_BD: Tensor, reconstruction_BD: Tensor, features_BF: Tensor) -> None:
        """Add a batch: rows and reconstruction ``[batch, d_in]``, features ``[batch, d_sae]``."""
        x_BD, x_hat_BD = x_BD.to(torch.float64), reconstruction_BD.to(torch.float64)
        residual_B = (x_BD - x_hat_BD).square().sum(dim=1)
        total_B = (x_BD - self.mean_D).square().sum(dim=1)
        off_mean_B = total_B > 0
        fired_BF = features_BF > 0
        self.rows += len(x_BD)
        self.rows_off_mean += int(off_mean_B.sum())
        self.residual += float(residual_B.sum())
        self.total += float(total_B.sum())
        self.legacy += float((1 - residual_B / total_B)[off_mean_B].sum())
        self.cosine += float(torch.cosine_similarity(x_BD, x_hat_BD, dim=1).sum())
        self.active += float(fired_BF.sum())
        fired_F = fired_BF.sum(dim=0)
        self.fired_F = fired_F if self.fired_F is None else self.fired_F + fired_F

    def metrics(self) -> dict[str, float]:
        """The metrics over all rows added, by name; NaN when undefined (data without variance).

        Raises ValueError when no row was added.
        """
        if self.fired_F is None or not self.rows:
            raise ValueError("no rows to evaluate: the split is empty")
        d_in, d_sae = len(self.mean_D), len(self.fired_F)
        fvu = self.residual / self.total if self.total else math.nan
        l0 = self.active / self.rows
        return {
            "explained_variance": 1 - fvu,
            "fvu": fvu,
            "explained_variance_legacy": (
                self.legacy / self.rows_off_mean if self.rows_off_mean else math.nan
            ),
            "mse": self.residual / self.rows / d_in,
            "cosine": self.cosine / self.rows,
            "l0": l0,
            "sparsity": l0 / d_sae,
        }

    def dead_fraction(self) -> float:
        """Fraction of latents that never fired."""
        assert self.fired_F is not None
        return float((self.fired_F == 0).double().mean())

    def density_histogram(self) -> dict[str, list[float]]:
        """Number of latents by log10 of the fraction of rows on which they fire.

        Latents that never fire are not counted. ``latents`` has one entry between each two of
        ``log10_edges``.
        """
        assert self.fired_F is not None
        density = (self.fired_F[self.fired_F > 0].double() / self.rows).log10()
        edges = torch.tensor([float(e) for e in DENSITY_DECADES], dtype=torch.float64)
        counts = torch.histogram(density.cpu(), edges).hist
        return {"log10_edges": edges.tolist(), "latents": counts.tolist()}


@torch.no_grad()
def evaluate(
    model: Model, batches: Iterable[Tensor], mean_D: Tensor | None = None
) -> ReconstructionSums:
    """The sums over all batches ``[*, d_in]``; ``mean_D [d_in]`` is the mean of their rows.

    Without ``mean_D`` all batches are held in memory and read twice. Raises ValueError when there
    are no rows.
    """
    if mean_D is None:
        batches = list(batches)
        mean_D = mean_of_rows(batches)
    sums = ReconstructionSums(mean_D)
    for batch in batches:
        sums.update(batch, *model(batch))
    return sums


def mean_of_rows(batches: Iterable[Tensor]) -> Tensor:
    """The mean row ``[d_in]`` of ``[*, d_in]`` batches, float64. Raises ValueError without rows."""
    rows, total_D = 0, None
    for batch in batches:
        part_D = batch.to(torch.float64).sum(dim=0)
        total_D = part_D if total_D is None else total_D + part_D
        rows += len(batch)
    if total_D is None or not rows:
        raise ValueError("no rows to evaluate: the split is empty")
    return total_D / rows
