"""The gradients of a batch for all SAEs of a pack: over the active latents alone, or by whole products.

Shapes: N SAEs, B batch, D d_in, F d_sae, C columns of AuxK.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from raysae.training.fused.aux_k import Batch, Dead, aux_k
from raysae.training.fused.batch_selection import select_batch
from raysae.training.fused.entries import Entries
from raysae.training.fused.passes import (
    LatentGradients,
    More,
    by_latent,
    decode,
    latent_gradients,
    weighted_rows,
)
from raysae.training.fused.selection import select_rows


class Weights(NamedTuple):
    """The weights of the SAEs; those of the encoder are stored as the transpose of what an SAE has."""

    W_enc_NFD: Tensor
    b_enc_NF: Tensor
    W_dec_NFD: Tensor
    b_dec_ND: Tensor
    enc_copy_NFD: Tensor
    """The encoder's in the dtype of the products; they may be the weights themselves."""
    dec_copy_NFD: Tensor


class Kind(NamedTuple):
    """What is the same for all steps of a pack."""

    k_N: Tensor
    most: int
    """The largest k."""
    whole_batch: bool
    """Whether latents are selected over the batch."""
    aux_N: Tensor
    """AuxK's coefficients."""
    aux_most: int
    """The latents with which AuxK reconstructs a row, at most."""
    sparse: bool
    """Whether the passes go over the active latents alone."""
    fast: bool
    """Whether kernels are launched."""
    frozen: bool = False
    """Whether the decoders stay as they are."""


class Gradients(NamedTuple):
    """The gradients of a batch, and what else the step needs of it."""

    latents: LatentGradients
    b_dec_ND: Tensor
    loss_N: Tensor
    fired_NF: Tensor
    """The latents that fired."""
    smallest_N: Tensor
    """The smallest active value of each SAE's batch; infinite where nothing fired."""

    @property
    def norm_N(self) -> Tensor:
        """The norm of each SAE's whole gradient, NaN or infinite where anything in it is."""
        square_N = self.latents.square_NF.clamp_min(0.0).sum(dim=1)
        return (square_N + self.b_dec_ND.square().sum(dim=1)).sqrt()


def gradients(
    x_NBD: Tensor, weights: Weights, kind: Kind, real: Tensor, dead: Dead | None
) -> Gradients:
    """The gradients of batches ``[saes, batch, d_in]``; rows from ``real`` on, a scalar, only pad them.

    ``dead``: the latents that AuxK reconstructs with; None: none are dead.
    """
    dtype, d_sae = weights.enc_copy_NFD.dtype, weights.b_enc_NF.shape[1]
    centered_NBD = (x_NBD - weights.b_dec_ND[:, None]).to(dtype)
    pre_NBF = centered_NBD @ weights.enc_copy_NFD.mT
    select = select_batch if kind.whole_batch else select_rows
    entries = select(pre_NBF, weights.b_enc_NF, kind.k_N, kind.most, real, kind.fast)
    passed = (_sparse if kind.sparse else _dense)(
        x_NBD, Batch(pre_NBF, centered_NBD, x_NBD, real), entries, weights, kind, dead
    )
    made, error_NBD, loss_N, fired_NF = passed
    back_ND = error_NBD.sum(dim=1, dtype=torch.float32) * (2 / real)
    through_ND = weighted_rows(weights.enc_copy_NFD, made.bias_NF, kind.fast)
    smallest_N = entries.value_NE.where(entries.column_NE < d_sae, torch.inf).amin(dim=1)
    return Gradients(made, back_ND - through_ND, loss_N, fired_NF, smallest_N)


def _sparse(
    x_NBD: Tensor, batch: Batch, entries: Entries, weights: Weights, kind: Kind, dead: Dead | None
) -> tuple[LatentGradients, Tensor, Tensor, Tensor]:
    """Over the active latents alone: gradients, error, loss, and which latents fired."""
    decoded = decode(x_NBD, weights.dec_copy_NFD, weights.b_dec_ND, entries, batch.real, kind.fast)
    loss_N, more = _aux(batch._replace(error_NBD=decoded.error_NBD), weights, kind, dead)
    order, start_NF = by_latent(entries, weights.b_enc_NF.shape[1])
    made = latent_gradients(
        entries,
        decoded,
        batch.centered_NBD,
        order,
        start_NF,
        batch.real,
        more,
        kind.fast,
        kind.frozen,
    )
    loss_N = decoded.loss_NB.sum(dim=1) / batch.real + loss_N
    return made, decoded.error_NBD, loss_N, start_NF[:, 1:] > start_NF[:, :-1]


def _dense(
    x_NBD: Tensor, batch: Batch, entries: Entries, weights: Weights, kind: Kind, dead: Dead | None
) -> tuple[LatentGradients, Tensor, Tensor, Tensor]:
    """By whole products, which many active latents make faster."""
    dtype, rows = weights.dec_copy_NFD.dtype, x_NBD.shape[1]
    features_NBF = entries.dense(weights.b_enc_NF.shape[1], dtype)
    product_NBD = (features_NBF @ weights.dec_copy_NFD).float()
    padding_B1 = (torch.arange(rows, device=x_NBD.device) >= batch.real)[:, None]
    error_NBD = (product_NBD + weights.b_dec_ND[:, None] - x_NBD).masked_fill_(padding_B1, 0.0)
    loss_N, more = _aux(batch._replace(error_NBD=error_NBD), weights, kind, dead)
    back_NBD = (error_NBD * (2 / batch.real)).to(dtype)
    idle_NBF = features_NBF <= 0
    dz_NBF = (back_NBD @ weights.dec_copy_NFD.mT).masked_fill_(idle_NBF, 0.0)
    enc_NFD = (dz_NBF.mT @ batch.centered_NBD).float()
    bias_NF = dz_NBF.sum(dim=1, dtype=torch.float32)
    dec_NFD = enc_NFD[:, :0] if kind.frozen else (features_NBF.mT @ back_NBD).float()
    if more is not None and dead is not None:
        index_NCD = dead.index_NC[:, :, None].expand_as(more.enc_NCD)
        if not kind.frozen:
            dec_NFD.scatter_(1, index_NCD, dec_NFD.gather(1, index_NCD) + more.dec_NCD)
        enc_NFD.scatter_(1, index_NCD, enc_NFD.gather(1, index_NCD) + more.enc_NCD)
        bias_NF.scatter_(1, dead.index_NC, bias_NF.gather(1, dead.index_NC) + more.bias_NC)
    along_NF = square_NF = torch.zeros_like(bias_NF)
    if not kind.frozen:
        along_NF = (dec_NFD * weights.W_dec_NFD).sum(dim=2)
        square_NF = (dec_NFD.square().sum(dim=2) - along_NF.square()).clamp_min_(0.0)
    square_NF = square_NF + enc_NFD.square().sum(dim=2) + bias_NF.square()
    made = LatentGradients(dec_NFD, enc_NFD, bias_NF, along_NF, square_NF)
    loss_N = error_NBD.square().sum(dim=(1, 2)) / batch.real + loss_N
    return made, error_NBD, loss_N, (~idle_NBF).any(dim=1)


def _aux(
    batch: Batch, weights: Weights, kind: Kind, dead: Dead | None
) -> tuple[Tensor, More | None]:
    """AuxK's loss ``[saes]`` and gradients; 0 and None where no latent is dead."""
    if dead is None:
        return torch.zeros_like(kind.aux_N), None
    return aux_k(
        batch, dead, weights.b_enc_NF, weights.W_dec_NFD, weights.dec_copy_NFD, kind.aux_N,
        kind.aux_most, kind.fast, kind.frozen,
    )  # fmt: skip
