"""The forward and backward pass over the active latents alone."""

import triton
import triton.language as tl


@triton.jit
def dictionary_rows(  # type: ignore[no-untyped-def]
    weights, column, number, columns, i, d_in, BLOCK: tl.constexpr, TOGETHER: tl.constexpr
):
    """The rows ``[TOGETHER, BLOCK]`` of the latents at the entries from ``i`` on, in float32; which of
    the entries there are."""
    at = i + tl.arange(0, TOGETHER)
    there = at < number
    latent = tl.minimum(tl.load(column + at, mask=there, other=0), columns - 1).to(tl.int64)
    place = tl.arange(0, BLOCK)
    mask = there[:, None] & (place < d_in)[None, :]
    row = tl.load(weights + latent[:, None] * d_in + place[None, :], mask=mask, other=0.0)
    return row.to(tl.float32), at, there


@triton.jit
def decode_rows(  # type: ignore[no-untyped-def]
    x, W_dec, b_dec, value, column, first, count, real, error, dz, loss,
    rows, columns, d_in, entries, BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """One program per row of the batch: its error, its loss, and the gradient of each active latent."""
    program = tl.program_id(0).to(tl.int64)
    sae, row = program // rows, program % rows
    place = tl.arange(0, BLOCK)
    inside = place < d_in
    number = tl.load(count + program)
    begin = sae * entries + tl.load(first + program)
    weights = W_dec + sae * columns * d_in
    real_rows = tl.load(real)
    result = tl.load(b_dec + sae * d_in + place, mask=inside, other=0.0)
    for i in range(0, number, TOGETHER):
        one, at, there = dictionary_rows(
            weights, column + begin, number, columns, i, d_in, BLOCK, TOGETHER
        )
        feature = tl.load(value + begin + at, mask=there, other=0.0)
        result += tl.sum(feature[:, None] * one, axis=0)
    off = result - tl.load(x + program * d_in + place, mask=inside, other=0.0)
    off = tl.where(inside & (row < real_rows), off, 0.0)
    tl.store(loss + program, tl.sum(off * off, axis=0))
    tl.store(error + program * d_in + place, off.to(error.dtype.element_ty), mask=inside)
    back = off * (2.0 / real_rows.to(tl.float32))
    for i in range(0, number, TOGETHER):
        one, at, there = dictionary_rows(
            weights, column + begin, number, columns, i, d_in, BLOCK, TOGETHER
        )
        tl.store(dz + begin + at, tl.sum(one * back[None, :], axis=1), mask=there)


@triton.jit
def latent_gradients(  # type: ignore[no-untyped-def]
    start, order, row_NE, value, dz, error, centered, real, slot_NF, more_dec, more_enc, more_bias,
    more_parallel, g_dec, g_enc, g_bias, parallel, square, rows, columns, d_in, extra,
    BLOCK: tl.constexpr, TOGETHER: tl.constexpr, MORE: tl.constexpr, DECODER: tl.constexpr,
):  # fmt: skip
    """One program per latent: the gradients of its two rows and its bias, summed over its entries in the
    order of the batch; their square norm, without the part that is parallel to its decoder row. Of a
    latent without entries ``square`` is -1, and nothing else is written but its bias, 0. Without
    DECODER the decoder's row has no gradient."""
    program = tl.program_id(0).to(tl.int64)
    sae, latent = program // columns, program % columns
    begin = tl.load(start + sae * (columns + 1) + latent)
    end = tl.load(start + sae * (columns + 1) + latent + 1)
    place = tl.arange(0, BLOCK)
    inside = place < d_in
    slot = -1
    if MORE:
        slot = tl.load(slot_NF + program)
    if (begin == end) & (slot < 0):
        tl.store(square + program, -1.0)
        tl.store(g_bias + program, 0.0)
        tl.store(parallel + program, 0.0)
        return
    by_error = tl.zeros([BLOCK], tl.float32)
    by_centered = tl.zeros([BLOCK], tl.float32)
    bias = 0.0
    along = 0.0
    for i in range(begin, end, TOGETHER):
        at = i + tl.arange(0, TOGETHER)
        there = at < end
        entry = tl.load(order + at, mask=there, other=0)
        row = sae * rows + tl.load(row_NE + entry, mask=there, other=0)
        gradient = tl.load(dz + entry, mask=there, other=0.0)
        cell = row[:, None] * d_in + place[None, :]
        mask = there[:, None] & inside[None, :]
        read = tl.load(centered + cell, mask=mask, other=0.0).to(tl.float32)
        by_centered += tl.sum(gradient[:, None] * read, axis=0)
        bias += tl.sum(gradient, axis=0)
        if DECODER:
            feature = tl.load(value + entry, mask=there, other=0.0)
            off = tl.load(error + cell, mask=mask, other=0.0).to(tl.float32)
            by_error += tl.sum(feature[:, None] * off, axis=0)
            along += tl.sum(gradient * feature, axis=0)
    by_error *= 2.0 / tl.load(real).to(tl.float32)
    if MORE:  # noqa: SIM102  (it is known when the kernel is compiled)
        if slot >= 0:
            at = sae * extra + slot
            by_centered += tl.load(more_enc + at * d_in + place, mask=inside, other=0.0)
            bias += tl.load(more_bias + at)
            if DECODER:
                by_error += tl.load(more_dec + at * d_in + place, mask=inside, other=0.0)
                along += tl.load(more_parallel + at)
    whole = tl.sum(by_error * by_error, axis=0) - along * along
    whole = tl.maximum(whole, 0.0, propagate_nan=tl.PropagateNan.ALL)
    whole += tl.sum(by_centered * by_centered, axis=0) + bias * bias
    tl.store(square + program, whole)
    tl.store(g_bias + program, bias)
    tl.store(parallel + program, along)
    if DECODER:
        tl.store(g_dec + program * d_in + place, by_error, mask=inside)
    tl.store(g_enc + program * d_in + place, by_centered, mask=inside)


@triton.jit
def weighted_rows(  # type: ignore[no-untyped-def]
    weights, factor, sums, columns, d_in, parts, LATENTS: tl.constexpr,
    BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Each program sums the weighted rows of LATENTS latents of an SAE."""
    program = tl.program_id(0).to(tl.int64)
    sae, own = program // parts, (program % parts).to(tl.int32)
    place = tl.arange(0, BLOCK)
    inside = place < d_in
    total = tl.zeros([BLOCK], tl.float32)
    first = own * LATENTS
    for i in range(first, tl.minimum(first + LATENTS, columns), TOGETHER):
        at = i + tl.arange(0, TOGETHER)
        there = at < columns
        by = tl.load(factor + sae * columns + at, mask=there, other=0.0)
        used = there & (by != 0)
        cell = (sae * columns + at.to(tl.int64))[:, None] * d_in + place[None, :]
        row = tl.load(weights + cell, mask=used[:, None] & inside[None, :], other=0.0)
        total += tl.sum(by[:, None] * row.to(tl.float32), axis=0)
    tl.store(sums + program * d_in + place, total, mask=inside)
