"""AuxK for all SAEs of a pack, on as many columns as hold their dead latents.

Shapes: N SAEs, B batch, D d_in, F d_sae, C columns.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from raysae.training.fused.passes import More
from raysae.training.fused.selection import select_rows


class Dead(NamedTuple):
    """The dead latents, in columns that may hold others, too."""

    dead_NC: Tensor
    """Which columns are of dead latents."""
    index_NC: Tensor
    """The latent of each column."""

    @classmethod
    def of(cls, dead_NF: Tensor, columns: int) -> "Dead":
        """Those of ``dead_NF [saes, d_sae]``, none of whose rows has more than ``columns``."""
        index_NC = dead_NF.sort(dim=1, descending=True, stable=True).indices[:, :columns]
        return cls(dead_NF.gather(1, index_NC), index_NC)

    def slots(self, d_sae: int) -> Tensor:
        """The column of each dead latent ``[saes, d_sae]``, int32; -1 of the others."""
        count, columns = self.index_NC.shape
        own_NC = torch.arange(columns, dtype=torch.int32, device=self.index_NC.device)
        own_NC = torch.where(self.dead_NC, own_NC, -1)
        none_NF = torch.full((count, d_sae), -1, dtype=torch.int32, device=own_NC.device)
        return none_NF.scatter_(1, self.index_NC, own_NC)

    def rows(self, whole_NFD: Tensor) -> Tensor:
        """The rows of these latents ``[saes, columns, d_in]``."""
        index_NCD = self.index_NC[:, :, None].expand(-1, -1, whole_NFD.shape[2])
        return whole_NFD.gather(1, index_NCD)


class Batch(NamedTuple):
    """What AuxK needs of a step."""

    pre_NBF: Tensor
    """Pre-activations without their bias, in the dtype of the products."""
    centered_NBD: Tensor
    error_NBD: Tensor
    """Reconstruction minus x; 0 in rows that only pad the batch."""
    real: Tensor
    """The number of the other rows, a scalar."""


def aux_k(
    batch: Batch, dead: Dead, b_enc_NF: Tensor, W_dec_NFD: Tensor, dec_copy_NFD: Tensor,
    weight_N: Tensor, most: int, fast: bool, frozen: bool = False,
) -> tuple[Tensor, More]:  # fmt: skip
    """The weighted AuxK loss ``[saes]`` and its gradients; see ``KSAE._aux_k``.

    ``weight_N``: AuxK's coefficients; ``most``: the latents that reconstruct a row, at most;
    ``dec_copy_NFD``: the decoders in the dtype of the products; ``frozen``: they have no gradient.
    """
    columns, dtype = dead.index_NC.shape[1], dec_copy_NFD.dtype
    features_NBC = _features(batch, dead, b_enc_NF, min(most, columns), dtype, fast)
    dictionary_NCD, error_NBD = dead.rows(dec_copy_NFD), batch.error_NBD.float()
    residual_NBD = -error_NBD - (features_NBC @ dictionary_NCD).float()
    mean_ND = error_NBD.sum(dim=1) / batch.real
    # the mean square around the mean; rows that pad the batch are 0
    spread_N = error_NBD.square().sum(dim=(1, 2)) / batch.real - mean_ND.square().sum(dim=1)
    scale_N = weight_N * error_NBD.shape[2] / spread_N.clamp_min(1e-12) * dead.dead_NC.any(dim=1)
    loss_N = scale_N * residual_NBD.square().sum(dim=(1, 2)) / batch.real
    back_NBD = (residual_NBD * (-2 * scale_N / batch.real)[:, None, None]).to(dtype)
    dz_NBC = (back_NBD @ dictionary_NCD.mT).masked_fill_(features_NBC <= 0, 0.0)
    enc_NCD, bias_NC = (dz_NBC.mT @ batch.centered_NBD).float(), dz_NBC.sum(1, dtype=torch.float32)
    dec_NCD, parallel_NC = enc_NCD[:, :0], bias_NC[:, :0]
    if not frozen:
        dec_NCD = (features_NBC.mT @ back_NBD).float()
        parallel_NC = (dec_NCD * dead.rows(W_dec_NFD)).sum(dim=2)
    slot_NF = dead.slots(b_enc_NF.shape[1])
    return loss_N, More(slot_NF, dec_NCD, enc_NCD, bias_NC, parallel_NC)


def _features(
    batch: Batch, dead: Dead, b_enc_NF: Tensor, most: int, dtype: torch.dtype, fast: bool
) -> Tensor:
    """The features ``[saes, batch, columns]`` of the ``most`` most active dead latents of each row."""
    rows = batch.pre_NBF.shape[1]
    index_NBC = dead.index_NC[:, None].expand(-1, rows, -1)
    pre_NBC = batch.pre_NBF.gather(2, index_NBC) + b_enc_NF.gather(1, dead.index_NC)[:, None]
    pre_NBC = pre_NBC.masked_fill_(~dead.dead_NC[:, None], 0.0)
    padding_B1 = (torch.arange(rows, device=pre_NBC.device) >= batch.real)[:, None]
    pre_NBC = pre_NBC.masked_fill_(padding_B1, 0.0)
    columns = pre_NBC.shape[2]
    if most == columns:
        return pre_NBC.relu_().to(dtype)
    bias_NC = torch.zeros_like(b_enc_NF[:, :columns])
    most_N = torch.full((len(pre_NBC),), most, device=pre_NBC.device)
    entries = select_rows(pre_NBC, bias_NC, most_N, most, batch.real, fast)
    return entries.dense(columns, dtype)
