"""The forward and backward pass over the active latents, for all SAEs of a pack.

Weights are ``[saes, d_sae, d_in]``, those of the encoder, too. Shapes: N SAEs, B batch, D d_in, F d_sae,
E entries of an SAE, C latents that AuxK reconstructs with.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from raysae.training.fused.entries import Entries
from raysae.training.fused.launching import Launch, launch, nothing, power_of_two, warps_for

WIDEST = 8192
"""The largest d_in of the kernels, whose programs hold a row of it."""
TOGETHER = 4
"""Entries whose rows a program reads at a time, of narrow rows; of the widest it is 1."""
LATENTS = 128
"""Latents whose weighted rows one program sums."""


class Decoded(NamedTuple):
    """The forward pass of a batch, and the gradient of its active latents."""

    error_NBD: Tensor
    """Reconstruction minus x, in the dtype of the products; 0 in rows that only pad the batch."""
    dz_NE: Tensor
    """The gradient of each entry, float32; what lies in places that hold none is not used."""
    loss_NB: Tensor
    """The square error of each row, float32."""


class More(NamedTuple):
    """AuxK's part of the gradients, for the latents that it reconstructs with."""

    slot_NF: Tensor
    """The place of each latent in the tensors below, int32; -1 for a latent that has none."""
    dec_NCD: Tensor
    enc_NCD: Tensor
    bias_NC: Tensor
    parallel_NC: Tensor


class LatentGradients(NamedTuple):
    """The gradients of each latent; what lies in rows without any is not used."""

    dec_NFD: Tensor
    """Those of the decoder rows, with the part that is parallel to them; empty of a frozen decoder."""
    enc_NFD: Tensor
    bias_NF: Tensor
    parallel_NF: Tensor
    """The length of the parallel part."""
    square_NF: Tensor
    """Their square norm without the parallel part; -1 of a latent that has none."""


def decode(
    x_NBD: Tensor, W_dec_NFD: Tensor, b_dec_ND: Tensor, entries: Entries, real: Tensor, fast: bool
) -> Decoded:
    """Reconstruct each row from its entries. ``W_dec_NFD`` is in the dtype of the products; rows from
    ``real`` on, a scalar, only pad the batch."""
    if not fast:
        return _decoded(x_NBD, W_dec_NFD, b_dec_ND, entries, real)
    count, rows, d_in = x_NBD.shape
    block, made = power_of_two(d_in), entries.value_NE.shape[1]
    result = Decoded(
        torch.empty_like(x_NBD, dtype=W_dec_NFD.dtype), torch.empty_like(entries.value_NE),
        x_NBD.new_empty(count, rows),
    )  # fmt: skip
    launch(Launch(
        "decode_rows", (count * rows,),
        {
            "x": x_NBD, "W_dec": W_dec_NFD, "b_dec": b_dec_ND, "value": entries.value_NE,
            "column": entries.column_NE, "first": entries.first_NB, "count": entries.count_NB,
            "real": real,
        },
        {"error": result.error_NBD, "dz": result.dz_NE, "loss": result.loss_NB},
        {"rows": rows, "columns": W_dec_NFD.shape[1], "d_in": d_in, "entries": made},
        {"BLOCK": block, "TOGETHER": together(block)}, warps_for(block),
    ))  # fmt: skip
    return result


def together(block: int) -> int:
    """Rows of so many elements that a program reads at a time."""
    return max(min(TOGETHER, 4096 // block), 1)


def by_latent(entries: Entries, columns: int) -> tuple[Tensor, Tensor]:
    """The numbers of all entries in the order of their SAE, latent and row, int64, and the place
    ``[saes, d_sae + 1]`` in it where each latent's begin, int32."""
    count = len(entries.column_NE)
    saes = torch.arange(count, dtype=torch.int32, device=entries.column_NE.device)[:, None]
    key = (entries.column_NE + saes * (columns + 1)).flatten()
    ordered, order = key.sort(stable=True)
    wanted = torch.arange(count * (columns + 1), dtype=torch.int32, device=key.device)
    start = torch.searchsorted(ordered, wanted, out_int32=True)
    return order, start.view(count, columns + 1)


def latent_gradients(
    entries: Entries, decoded: Decoded, centered_NBD: Tensor, order: Tensor, start_NF: Tensor,
    real: Tensor, more: More | None, fast: bool, frozen: bool = False,
) -> LatentGradients:  # fmt: skip
    """The gradients from the entries, in ``order``, which begin at ``start_NF [saes, d_sae + 1]``.

    ``frozen``: the decoder has none, and ``more`` none for it.
    """
    if not fast:
        columns = start_NF.shape[1] - 1
        return _latent_gradients(entries, decoded, centered_NBD, columns, real, more, frozen)
    (count, rows, d_in), columns = centered_NBD.shape, start_NF.shape[1] - 1
    of_rows = lambda of=columns: torch.empty(count, of, d_in, device=start_NF.device)  # noqa: E731
    of_latents = lambda: torch.empty(count, columns, device=start_NF.device)  # noqa: E731
    rows_of_decoder = of_rows(0 if frozen else columns)
    made = LatentGradients(rows_of_decoder, of_rows(), of_latents(), of_latents(), of_latents())
    block, none = power_of_two(d_in), nothing(start_NF)
    added = more or More(none, *(decoded.loss_NB,) * 4)
    launch(Launch(
        "latent_gradients", (count * columns,),
        {
            "start": start_NF, "order": order, "row_NE": entries.row_NE, "dz": decoded.dz_NE,
            "value": none if frozen else entries.value_NE, "centered": centered_NBD, "real": real,
            "error": none if frozen else decoded.error_NBD,
            "slot_NF": added.slot_NF, "more_dec": added.dec_NCD, "more_enc": added.enc_NCD,
            "more_bias": added.bias_NC, "more_parallel": added.parallel_NC,
        },
        {
            "g_dec": made.dec_NFD, "g_enc": made.enc_NFD, "g_bias": made.bias_NF,
            "parallel": made.parallel_NF, "square": made.square_NF,
        },
        {
            "rows": rows, "columns": columns, "d_in": d_in,
            "extra": added.bias_NC.shape[1] if more else 0,
        },
        {
            "BLOCK": block, "TOGETHER": max(together(block) // 2, 1), "MORE": more is not None,
            "DECODER": not frozen,
        },
        warps_for(block),
    ))  # fmt: skip
    return made


def weighted_rows(weights_NFD: Tensor, factor_NF: Tensor, fast: bool) -> Tensor:
    """The sum ``[saes, d_in]`` of each SAE's rows, times their factors, float32."""
    if not fast:
        return (factor_NF[:, None] @ weights_NFD.float()).squeeze(1)
    count, columns, d_in = weights_NFD.shape
    block, parts = power_of_two(d_in), -(-columns // LATENTS)
    sums = torch.empty(count, parts, d_in, device=factor_NF.device)
    launch(Launch(
        "weighted_rows", (count * parts,), {"weights": weights_NFD, "factor": factor_NF},
        {"sums": sums}, {"columns": columns, "d_in": d_in, "parts": parts},
        {"LATENTS": LATENTS, "BLOCK": block, "TOGETHER": together(block)}, warps_for(block),
    ))  # fmt: skip
    return sums.sum(dim=1)


def _decoded(
    x_NBD: Tensor, W_dec_NFD: Tensor, b_dec_ND: Tensor, entries: Entries, real: Tensor
) -> Decoded:
    columns, d_in = W_dec_NFD.shape[1:]
    column_NE, row_NE = entries.column_NE.long(), entries.row_NE.long()
    there_NE = column_NE < columns
    column_NED = column_NE.clamp_max(columns - 1)[:, :, None].expand(-1, -1, d_in)
    row_NED = row_NE[:, :, None].expand(-1, -1, d_in)
    dictionary_NED = W_dec_NFD.float().gather(1, column_NED)
    feature_NE1 = entries.value_NE.where(there_NE, 0.0)[:, :, None]
    result_NBD = b_dec_ND[:, None].expand_as(x_NBD)
    error_NBD = result_NBD.scatter_add(1, row_NED, feature_NE1 * dictionary_NED) - x_NBD
    padding_B = torch.arange(x_NBD.shape[1], device=x_NBD.device) >= real
    error_NBD = error_NBD.masked_fill(padding_B[:, None], 0.0)
    dz_NE = ((error_NBD * (2 / real)).gather(1, row_NED) * dictionary_NED).sum(dim=2)
    return Decoded(error_NBD.to(W_dec_NFD.dtype), dz_NE, error_NBD.square().sum(dim=2))


def _latent_gradients(
    entries: Entries, decoded: Decoded, centered_NBD: Tensor, columns: int, real: Tensor,
    more: More | None, frozen: bool,
) -> LatentGradients:  # fmt: skip
    column_NE, d_in = entries.column_NE.long(), centered_NBD.shape[2]
    row_NED = entries.row_NE.long()[:, :, None].expand(-1, -1, d_in)
    column_NED = column_NE[:, :, None].expand(-1, -1, d_in)
    dz_NE = decoded.dz_NE.where(column_NE < columns, 0.0)

    def summed(values_NE: Tensor, rows_NBD: Tensor | None = None) -> Tensor:
        zeros = values_NE.new_zeros(len(values_NE), columns + 1)
        if rows_NBD is None:
            return zeros.scatter_add(1, column_NE, values_NE)[:, :columns].contiguous()
        wide = zeros[:, :, None].repeat(1, 1, d_in)
        of_entries_NED = values_NE[:, :, None] * rows_NBD.float().gather(1, row_NED)
        return wide.scatter_add(1, column_NED, of_entries_NED)[:, :columns].contiguous()

    enc_NFD, bias_NF = summed(dz_NE, centered_NBD), summed(dz_NE)
    dec_NFD, along_NF = enc_NFD[:, :0], torch.zeros_like(bias_NF)
    if not frozen:
        dec_NFD = summed(entries.value_NE, decoded.error_NBD) * (2 / real)
        along_NF = summed(dz_NE * entries.value_NE)
    has_NF = summed(torch.ones_like(dz_NE)) > 0
    if more is not None:
        slot_NF = more.slot_NF.long()
        added_NF = slot_NF >= 0
        place_NF = slot_NF.clamp_min(0)
        place_NFD = place_NF[:, :, None].expand(-1, -1, d_in)
        if not frozen:
            dec_NFD = dec_NFD + more.dec_NCD.gather(1, place_NFD).where(added_NF[:, :, None], 0.0)
            along_NF = along_NF + more.parallel_NC.gather(1, place_NF).where(added_NF, 0.0)
        enc_NFD = enc_NFD + more.enc_NCD.gather(1, place_NFD).where(added_NF[:, :, None], 0.0)
        bias_NF = bias_NF + more.bias_NC.gather(1, place_NF).where(added_NF, 0.0)
        has_NF = has_NF | added_NF
    square_NF = torch.zeros_like(bias_NF)
    if not frozen:
        square_NF = (dec_NFD.square().sum(dim=2) - along_NF.square()).clamp_min(0.0)
    square_NF = square_NF + enc_NFD.square().sum(dim=2) + bias_NF.square()
    return LatentGradients(dec_NFD, enc_NFD, bias_NF, along_NF, square_NF.where(has_NF, -1.0))
