"""An SAE on the rows of another store: what it explains, what fires, which features are live on both.

Shapes: N rows, D d_in, F d_sae, S sequences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.writer import SiteRows
from raysae.analysis.intervals import bootstrap, bootstrap_ratio, known, wilson
from raysae.atlas.library.encoding import DENSE_VALUES
from raysae.sae import SAE
from raysae.sae.metrics import mean_of_rows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OnRows:
    """An SAE's figures on some rows, as sums over each sequence."""

    residual_S: Floats
    total_S: Floats
    """Squared distance from the mean of all the rows."""
    active_S: Floats
    rows_S: Floats
    fires_F: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self.rows_S.sum())

    def figures(self, seed: int) -> dict[str, Any]:
        """explained_variance and l0 with 95% intervals over sequences, the dead share over latents."""
        low, high = bootstrap_ratio(self.residual_S, self.total_S, seed)
        fewer, more = bootstrap_ratio(self.active_S, self.rows_S, seed)
        total, dead = float(self.total_S.sum()), int((self.fires_F == 0).sum())
        least, most = wilson(dead, len(self.fires_F))
        return {
            "rows": self.rows, "sequences": len(self.rows_S), "d_sae": len(self.fires_F),
            "explained_variance": 1 - float(self.residual_S.sum()) / total if total else None,
            "explained_variance_low": known(1 - high), "explained_variance_high": known(1 - low),
            "l0": float(self.active_S.sum()) / self.rows, "l0_low": fewer, "l0_high": more,
            "dead_share": dead / len(self.fires_F), "dead_share_low": least,
            "dead_share_high": most,
        }  # fmt: skip


@torch.no_grad()
def on_rows(sae: SAE, parts: Sequence[SiteRows], alive: Callable[[], None]) -> OnRows:
    """The figures of an SAE on rows that lie in memory."""
    mean_D = mean_of_rows([part.activation_ND for part in parts])
    names = np.unique(np.concatenate([part.sequence for part in parts]))
    sums_4S = np.zeros((4, len(names)))
    fires_F = torch.zeros(sae.config.d_sae, dtype=torch.int64)
    for part in parts:
        number = np.searchsorted(names, part.sequence)
        together = max(1, DENSE_VALUES // sae.config.d_sae)
        for start in range(0, len(part), together):
            here = slice(start, start + together)
            sums_4N, fired_F = _sums(sae, part.activation_ND[here], mean_D)
            fires_F += fired_F
            for which, sums_N in enumerate(sums_4N):
                sums_4S[which] += np.bincount(number[here], sums_N, len(names))
            alive()
    residual_S, total_S, active_S, rows_S = sums_4S
    return OnRows(residual_S, total_S, active_S, rows_S, fires_F.numpy())


def _sums(sae: SAE, rows_ND: Tensor, mean_D: Tensor) -> tuple[Floats, Tensor]:
    """Squared residual, squared distance from the mean, active latents and 1 of each row: ``[4, N]``."""
    x_ND = rows_ND.to(sae.W_dec)
    reconstruction_ND, features_NF = sae.reconstruct(x_ND)
    exact_ND, fired_NF = x_ND.double(), features_NF > 0
    residual_N = (exact_ND - reconstruction_ND.double()).square().sum(dim=1)
    total_N = (exact_ND - mean_D.to(exact_ND)).square().sum(dim=1)
    active_N = fired_NF.sum(dim=1).double()
    sums_4N = torch.stack([residual_N, total_N, active_N, torch.ones_like(active_N)])
    return sums_4N.cpu().numpy(), fired_NF.sum(dim=0).cpu()


def overlap(own: OnRows, other: OnRows, seed: int) -> dict[str, Any]:
    """Which latents are live on both stores' rows, and how their densities agree (Spearman).

    ``live_chance`` is the overlap of as many live latents that are drawn at random on either side.
    """
    live_own, live_other = own.fires_F > 0, other.fires_F > 0
    both, either = int((live_own & live_other).sum()), int((live_own | live_other).sum())
    low, high = wilson(both, either)
    one, two = live_own.mean(), live_other.mean()
    union = one + two - one * two
    return {
        "live_own": int(live_own.sum()), "live_other": int(live_other.sum()), "live_both": both,
        "live_either": either, "live_overlap": both / either if either else None,
        "live_overlap_low": known(low), "live_overlap_high": known(high),
        "live_chance": float(one * two / union) if union else None,
        **_rank_correlation(own, other, seed),
    }  # fmt: skip


def _rank_correlation(own: OnRows, other: OnRows, seed: int) -> dict[str, Any]:
    """Spearman's correlation of the densities of latents that are live on either side, its interval by a
    bootstrap of the ranks over latents, and the correlation with one side's ranks permuted."""
    from scipy.stats import rankdata

    either = (own.fires_F > 0) | (other.fires_F > 0)
    if either.sum() < 3:
        return {"density_correlation": None}
    ranks = [rankdata(one.fires_F[either]) for one in (own, other)]
    permuted = np.random.default_rng(seed).permutation(ranks[1])
    every = np.arange(len(permuted))[None]
    low, high = bootstrap(lambda drawn: _pearson(ranks, drawn), len(permuted), seed)
    return {
        "density_correlation": known(float(_pearson(ranks, every)[0])),
        "density_correlation_low": known(low), "density_correlation_high": known(high),
        "density_correlation_permuted": known(float(_pearson([ranks[0], permuted], every)[0])),
    }  # fmt: skip


def _pearson(ranks: Sequence[Floats], drawn: NDArray[np.int64]) -> Floats:
    """The correlation of two rows of values over each draw ``[draws, units]``; NaN without spread."""
    one, other = (value[drawn] - value[drawn].mean(axis=1, keepdims=True) for value in ranks)
    scale = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    top = (one * other).sum(axis=1)
    return np.divide(top, scale, out=np.full(len(drawn), np.nan), where=scale > 0)
