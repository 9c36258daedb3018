"""Metrics of an SAE where the atoms that its rows are made of are known, as SAELens defines them
(``sae_lens.synthetic.evals``).

- ``mcc`` = mean absolute cosine of the best one-to-one match of decoder rows and atoms (Hungarian
  method). Where the two numbers multiply to more than ``ALL_MATCHED``, ``MATCH_SAMPLE`` rows of the
  smaller set are matched, which errs high.
- ``uniqueness`` = number of atoms that are nearest to some decoder row, over d_sae.
- ``f1`` = mean over latents of F1, where each latent is a detector of the atom nearest to its decoder
  row: it says of each row whether the atom fires; ``f1_precision`` and ``f1_recall`` are the means of
  precision and recall. An undefined one counts as 0.

Shapes: S rows of the sample, D d_in, F d_sae, G true atoms.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raysae.sae.dictionary import mmcs

ALL_MATCHED = 2**22
MATCH_SAMPLE = 1024
VALUES_AT_ONCE = 2**22


class Truth(NamedTuple):
    """What is known of synthetic rows."""

    atoms_GD: Tensor
    """The true atoms, ``[atoms, d_in]``."""
    rows_SD: Tensor | None = None
    """A sample of rows that are not trained on, ``[sample, d_in]``."""
    fired_SG: Tensor | None = None
    """Which atoms fire in the sample, ``[sample, atoms]``, bool."""


@torch.no_grad()
def truth_metrics(
    truth: Truth, W_dec_FD: Tensor, encode: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """The metrics of the decoder rows ``[d_sae, d_in]`` and of the features ``[sample, d_sae]`` that
    ``encode`` gives, by name; those of the features are there where the truth has a sample."""
    atoms_GD = truth.atoms_GD.to(W_dec_FD)
    found = dict(zip(("mmcs", "recovered"), mmcs(atoms_GD, W_dec_FD), strict=True))
    cosine_GF = _cosines(atoms_GD, W_dec_FD)
    found["mcc"] = _matched(cosine_GF)
    nearest_F = cosine_GF.argmax(dim=0)  # the atom nearest to each decoder row
    del cosine_GF
    found["uniqueness"] = len(nearest_F.unique()) / len(nearest_F)
    if truth.rows_SD is None or truth.fired_SG is None:
        return found
    at_once = max(VALUES_AT_ONCE // len(W_dec_FD), 1)
    detection = Detection(nearest_F)
    for rows_BD, fired_BG in zip(
        truth.rows_SD.split(at_once), truth.fired_SG.split(at_once), strict=True
    ):
        detection.update(encode(rows_BD.to(W_dec_FD)), fired_BG.to(W_dec_FD.device))
    return {**found, **detection.metrics()}


def mcc(atoms_GD: Tensor, W_dec_FD: Tensor) -> float:
    """``mcc`` of atoms ``[atoms, d_in]`` and decoder rows ``[d_sae, d_in]``; see above."""
    return _matched(_cosines(atoms_GD, W_dec_FD))


def _matched(cosine_XY: Tensor) -> float:
    from scipy.optimize import linear_sum_assignment

    if cosine_XY.numel() > ALL_MATCHED and min(cosine_XY.shape) > MATCH_SAMPLE:
        cosine_XY = cosine_XY if len(cosine_XY) <= cosine_XY.shape[1] else cosine_XY.T
        drawn = torch.randperm(len(cosine_XY), generator=torch.Generator().manual_seed(0))
        cosine_XY = cosine_XY[drawn[:MATCH_SAMPLE].to(cosine_XY.device)]
    cosine = cosine_XY.cpu().numpy()
    return float(cosine[linear_sum_assignment(cosine, maximize=True)].mean())


class Detection:
    """Counts how well each latent tells whether its atom, ``nearest_F [d_sae]``, fires."""

    def __init__(self, nearest_F: Tensor):
        self.nearest_F = nearest_F
        self.both_F = torch.zeros(len(nearest_F), dtype=torch.float64, device=nearest_F.device)
        self.latent_F, self.atom_F = self.both_F.clone(), self.both_F.clone()

    def update(self, features_BF: Tensor, fired_BG: Tensor) -> None:
        """Add rows: features ``[batch, d_sae]``, and which atoms fire ``[batch, atoms]``."""
        latent_BF, atom_BF = features_BF != 0, fired_BG[:, self.nearest_F]
        self.both_F += (latent_BF & atom_BF).sum(dim=0)
        self.latent_F += latent_BF.sum(dim=0)
        self.atom_F += atom_BF.sum(dim=0)

    def metrics(self) -> dict[str, float]:
        """``f1``, ``f1_precision`` and ``f1_recall``."""
        precision_F = self.both_F / self.latent_F.clamp(min=1)
        recall_F = self.both_F / self.atom_F.clamp(min=1)
        total_F = precision_F + recall_F
        f1_F = 2 * precision_F * recall_F / total_F.where(total_F > 0, 1.0)
        named = {"f1": f1_F, "f1_precision": precision_F, "f1_recall": recall_F}
        return {name: float(value_F.mean()) for name, value_F in named.items()}


def _cosines(first_XD: Tensor, second_YD: Tensor) -> Tensor:
    first, second = normalize(first_XD.double(), dim=1), normalize(second_YD.double(), dim=1)
    return (first @ second.T).abs_()
