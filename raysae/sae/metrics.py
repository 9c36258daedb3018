"""Reconstruction metrics of an SAE, from sums in float64 over all rows of a split.

Definitions (x data, x̂ reconstruction, x̄ the per-dimension mean over the evaluated rows):

- ``explained_variance`` = 1 - Σ‖x-x̂‖² / Σ‖x-x̄‖²: a ratio of sums, so that the mean predictor
  scores exactly 0; ``fvu`` is its complement.
- ``explained_variance_legacy`` = mean over rows of 1 - ‖x-x̂‖² / ‖x-x̄‖², as in older papers.
- ``mse`` = mean over rows of ‖x-x̂‖² / d_in; ``cosine`` = mean cosine similarity of x and x̂, where
  the cosine with a row of zeros is 0, and that of two rows of zeros 1.
- ``l0`` = mean number of active latents per row; ``sparsity`` = l0 / d_sae.
- ``explained_variance_ordinary`` = ``explained_variance`` over the rows that are no sinks (see
  ``Sinks``), around their own mean; ``sink_fraction`` = fraction of the rows that are sinks.
- ``dead_fraction_validation`` = fraction of latents that never fire over the evaluated rows.

Shapes: B batch, D d_in, F d_sae.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Model = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps rows ``[batch, d_in]`` to their reconstruction and features ``[batch, d_sae]``."""

DENSITY_DECADES = range(-6, 1)
"""Edges of the feature-density histogram: log10 of the fraction of rows on which a latent fires."""


@dataclass(frozen=True)
class Sinks:
    """The rule that tells sink rows, such as attention sinks, from ordinary rows."""

    centre_D: Tensor
    """Geometric median of the training rows, ``[d_in]``, float64."""
    limit: float
    """A row further from the centre than this is a sink; infinite: no row is."""

    def are(self, x_BD: Tensor) -> Tensor:
        """Which rows ``[batch, d_in]`` are sinks: ``[batch]`` of bool."""
        offset_BD = x_BD.to(torch.float64) - self.centre_D.to(x_BD.device)
        return offset_BD.norm(dim=1) > self.limit


class ReconstructionSums:
    """The sums from which the metrics follow; call ``update`` with each batch, then ``metrics``.

    ``mean_D [d_in]`` is the mean of the rows that will be added. With ``sinks`` the metrics have
    those over ordinary rows, too.
    """

    def __init__(self, mean_D: Tensor, sinks: Sinks | None = None):
        self.mean_D = mean_D.to(torch.float64)
        self.rows = 0
        self.rows_off_mean = 0
        self.residual = self.total = self.legacy = self.cosine = self.active = 0.0
        self.second = [0.0, 0.0]
        """Residual and total of every second row of each batch: half of the rows."""
        self.fired_F: Tensor | None = None
        self.ordinary = None if sinks is None else _OrdinaryRows(sinks, self.mean_D)

    @classmethod
    def of_rows(cls, x_BD: Tensor) -> "ReconstructionSums":
        """Sums over one batch, centred on that batch's own mean."""
        return cls(mean_of_rows([x_BD]))

    def update(self, x_BD: Tensor, reconstruction_BD: Tensor, features_BF: Tensor) -> None:
        """Add a batch: rows and reconstruction ``[batch, d_in]``, features ``[batch, d_sae]``."""
        x_BD, x_hat_BD = x_BD.to(torch.float64), reconstruction_BD.to(torch.float64)
        residual_B = (x_BD - x_hat_BD).square().sum(dim=1)
        offset_BD = x_BD - self.mean_D
        total_B = offset_BD.square().sum(dim=1)
        off_mean_B = total_B > 0
        fired_BF = features_BF > 0
        self.rows += len(x_BD)
        off_mean, residual, total, *second, legacy, cosine, active = _numbers(
            off_mean_B.sum(), residual_B.sum(), total_B.sum(),
            residual_B[1::2].sum(), total_B[1::2].sum(),
            _sum_of(1 - residual_B / total_B, off_mean_B),
            cosines(x_BD, x_hat_BD).sum(), fired_BF.sum(),
        )  # fmt: skip
        self.rows_off_mean += int(off_mean)
        self.residual, self.total = self.residual + residual, self.total + total
        self.second = [one + more for one, more in zip(self.second, second, strict=True)]
        self.legacy, self.cosine = self.legacy + legacy, self.cosine + cosine
        self.active += active
        fired_F = fired_BF.sum(dim=0)
        self.fired_F = fired_F if self.fired_F is None else self.fired_F + fired_F
        if self.ordinary is not None:
            self.ordinary.update(offset_BD, total_B, residual_B)

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
            **({} if self.ordinary is None else self.ordinary.metrics()),
        }

    def halves_differ(self) -> float:
        """The difference of the explained variance between two halves of the rows; NaN if undefined."""
        residual, total = self.second
        if not total or self.total <= total:
            return math.nan
        first = (self.residual - residual) / (self.total - total)
        return abs(residual / total - first)

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


class _OrdinaryRows:
    """The sums over the rows that are no sinks, and their explained variance."""

    def __init__(self, sinks: Sinks, mean_D: Tensor):
        self.limit = sinks.limit
        self.centre_D = sinks.centre_D.to(mean_D) - mean_D
        self.offset_D = torch.zeros_like(mean_D)
        self.rows = self.sinks = 0
        self.residual = self.square = 0.0

    def update(self, offset_BD: Tensor, square_B: Tensor, residual_B: Tensor) -> None:
        """Add a batch: offsets from the mean of all rows, their squares, squared errors."""
        centre_D = self.centre_D
        # ‖offset - centre‖² without another pass over the rows
        distance_B = square_B - 2 * (offset_BD @ centre_D) + centre_D.square().sum()
        ordinary_B = distance_B <= self.limit**2
        rows, residual, square = _numbers(
            ordinary_B.sum(), _sum_of(residual_B, ordinary_B), _sum_of(square_B, ordinary_B)
        )
        self.rows, self.sinks = self.rows + int(rows), self.sinks + len(ordinary_B) - int(rows)
        self.residual, self.square = self.residual + residual, self.square + square
        self.offset_D += ordinary_B.double() @ offset_BD

    def metrics(self) -> dict[str, float]:
        """``explained_variance_ordinary`` and ``sink_fraction``."""
        shift = float(self.offset_D.square().sum()) / max(self.rows, 1)
        total = self.square - shift if self.sinks else self.square
        return {
            "explained_variance_ordinary": 1 - self.residual / total if total > 0 else math.nan,
            "sink_fraction": self.sinks / max(self.rows + self.sinks, 1),
        }


def _sum_of(values_B: Tensor, chosen_B: Tensor) -> Tensor:
    """The sum of the chosen values; on a GPU without waiting for how many they are."""
    if values_B.device.type == "cpu":
        return values_B[chosen_B].sum()
    return values_B.where(chosen_B, 0.0).sum()


def _numbers(*scalars: Tensor) -> list[float]:
    """The scalars as numbers; the host waits for the device once."""
    numbers: list[float] = torch.stack([scalar.double() for scalar in scalars]).tolist()
    return numbers


def cosines(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """The cosine of each row of ``x_BD`` and of ``y_BD [batch, d_in]``, ``[batch]``, of any size.

    It is 0 where one row is zero, and 1 where both are.
    """
    largest_x_B1 = x_BD.abs().amax(dim=1, keepdim=True)
    largest_y_B1 = y_BD.abs().amax(dim=1, keepdim=True)
    # squares of small or large numbers leave the range of floats; those of rows up to 1 do not
    x_BD, y_BD = (
        rows_BD / largest_B1.where(largest_B1 > 0, 1.0)
        for rows_BD, largest_B1 in ((x_BD, largest_x_B1), (y_BD, largest_y_B1))
    )
    norms_B = (x_BD.square().sum(dim=1) * y_BD.square().sum(dim=1)).sqrt()
    cosine_B = (x_BD * y_BD).sum(dim=1) / norms_B.where(norms_B > 0, 1.0)
    both_zero_B1 = (largest_x_B1 == 0) & (largest_y_B1 == 0)
    return cosine_B.where(~both_zero_B1.squeeze(1), 1.0)


@torch.no_grad()
def evaluate(
    model: Model,
    batches: Iterable[Tensor],
    mean_D: Tensor | None = None,
    sinks: Sinks | None = None,
) -> ReconstructionSums:
    """The sums over all batches ``[*, d_in]``; ``mean_D [d_in]`` is the mean of their rows.

    With ``sinks`` they include those of ordinary rows. Without ``mean_D`` all batches are held in
    memory and read twice. Raises ValueError when there are no rows.
    """
    if mean_D is None:
        batches = list(batches)
        mean_D = mean_of_rows(batches)
    sums = ReconstructionSums(mean_D, sinks)
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
