"""Torch's Adam for all SAEs of a pack, in place: each has its own learning rate and clipping.

Shapes: N SAEs, D d_in, F d_sae.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raysae.training.fused.launching import Launch, launch, nothing, power_of_two, warps_for
from raysae.training.fused.passes import LatentGradients
from raysae.training.step import BETAS, EPSILON

SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Moving:
    """A tensor that Adam trains, with its moments, all ``[saes, *]`` in float32."""

    p: Tensor
    m: Tensor
    v: Tensor


@dataclass(frozen=True)
class Rates:
    """Adam's factors at a step."""

    clip_N: Tensor
    """What scales the gradient."""
    rate_N: Tensor
    """The learning rate with the first moment's bias correction."""
    root_1: Tensor
    """The square root of the second moment's bias correction."""
    alive_N: Tensor
    """Which SAEs change, bool."""


def adam_rows(
    made: LatentGradients, dec: Moving, enc: Moving, copies: tuple[Tensor, Tensor], rates: Rates,
    fast: bool, frozen: bool = False,
) -> None:  # fmt: skip
    """Adam on the rows of decoder and encoder ``[saes, d_sae, d_in]``, and unit norm of the decoder's.

    ``copies`` of both in the dtype of the products are kept up; they may be the rows themselves. A
    ``frozen`` decoder, which needs no moments, stays as it is.
    """
    if not fast:
        _adam_rows(made, dec, enc, copies, rates, frozen)
        return
    (count, columns, d_in), copied = dec.p.shape, copies[0] is not dec.p
    block, none = power_of_two(d_in), nothing(dec.p)
    moving = {"W_enc": enc.p, "m_enc": enc.m, "v_enc": enc.v}
    of_decoder = {"W_dec": dec.p, "m_dec": dec.m, "v_dec": dec.v}
    written = {"enc_copy": copies[1], "dec_copy": none if frozen else copies[0]} if copied else {}
    if frozen:
        of_decoder = dict.fromkeys(of_decoder, none)
    launch(Launch(
        "adam_rows", (count * columns,),
        {
            "g_dec": made.dec_NFD, "g_enc": made.enc_NFD,
            "parallel": none if frozen else made.parallel_NF,
            "square": made.square_NF, "clip_N": rates.clip_N, "rate_N": rates.rate_N,
            "root_N": rates.root_1, "alive_N": rates.alive_N.to(torch.int32), **moving,
            **of_decoder,
        },
        {**moving, **of_decoder, **written},
        {
            "columns": columns, "d_in": d_in, "first": BETAS[0], "second": BETAS[1],
            "epsilon": EPSILON, "tiny": SMALLEST,
            **({} if copied else {"dec_copy": 0, "enc_copy": 0}),
        },
        {"BLOCK": block, "COPY": copied, "DECODER": not frozen}, warps_for(block),
    ))  # fmt: skip


def adam(moving: Moving, gradient: Tensor, rates: Rates) -> None:
    """Adam on one tensor ``[saes, *]``."""
    shape = (-1, *[1] * (gradient.dim() - 1))
    alive = rates.alive_N.view(shape)
    clipped = (gradient * rates.clip_N.view(shape)).where(alive, 0.0)
    moving.m.copy_(torch.where(alive, torch.lerp(moving.m, clipped, 1 - BETAS[0]), moving.m))
    square = moving.v * BETAS[1] + (1 - BETAS[1]) * clipped * clipped
    moving.v.copy_(torch.where(alive, square, moving.v))
    scale = moving.v.sqrt().div_(rates.root_1).add_(EPSILON)
    moving.p.copy_(
        torch.where(alive, moving.p - moving.m / scale * rates.rate_N.view(shape), moving.p)
    )


def _adam_rows(
    made: LatentGradients, dec: Moving, enc: Moving, copies: tuple[Tensor, Tensor], rates: Rates,
    frozen: bool,
) -> None:  # fmt: skip
    read_NF1 = (made.square_NF >= 0)[:, :, None]
    if not frozen:
        g_dec_NFD = made.dec_NFD - made.parallel_NF[:, :, None] * dec.p
        adam(dec, g_dec_NFD.where(read_NF1, 0.0), rates)
    adam(enc, made.enc_NFD.where(read_NF1, 0.0), rates)
    if not frozen:
        unit_NFD = dec.p / dec.p.norm(dim=2, keepdim=True).clamp_min(SMALLEST)
        dec.p.copy_(torch.where(rates.alive_N[:, None, None], unit_NFD, dec.p))
    for copy, moving in zip(copies, (dec, enc), strict=True):
        if copy is not moving.p:
            copy.copy_(moving.p)
