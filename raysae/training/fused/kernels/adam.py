"""Adam for the two rows of each latent."""

import triton
import triton.language as tl


@triton.jit
def moved_row(  # type: ignore[no-untyped-def]
    p, gradient, m, v, at, inside, rate, root, first, second, epsilon
):
    """A row after Adam's step; its moments are stored."""
    moved = tl.load(m + at, mask=inside, other=0.0)
    square = tl.load(v + at, mask=inside, other=0.0)
    moved = moved + (1 - first) * (gradient - moved)
    square = square * second + (1 - second) * gradient * gradient
    tl.store(m + at, moved, mask=inside)
    tl.store(v + at, square, mask=inside)
    return p - rate * moved / (tl.sqrt(square) / root + epsilon)


@triton.jit
def adam_rows(  # type: ignore[no-untyped-def]
    g_dec, g_enc, parallel, square, clip_N, rate_N, root_N, alive_N,
    W_dec, m_dec, v_dec, W_enc, m_enc, v_enc, dec_copy, enc_copy,
    columns, d_in, first, second, epsilon, tiny, BLOCK: tl.constexpr, COPY: tl.constexpr,
    DECODER: tl.constexpr,
):  # fmt: skip
    """One program per latent: clipping, Adam on its two rows, unit norm of that of the decoder, and
    their copies in the dtype of the products. A row without a gradient has one of 0, not read. Without
    DECODER its row stays as it is."""
    program = tl.program_id(0).to(tl.int64)
    sae = program // columns
    if tl.load(alive_N + sae) == 0:
        return
    clip, rate, root = tl.load(clip_N + sae), tl.load(rate_N + sae), tl.load(root_N)
    place = tl.arange(0, BLOCK)
    inside = place < d_in
    at = program * d_in + place
    read = place < tl.where(tl.load(square + program) >= 0, d_in, 0)

    if DECODER:
        row = tl.load(W_dec + at, mask=inside, other=0.0)
        gradient = tl.load(g_dec + at, mask=read, other=0.0)
        gradient = (gradient - tl.load(parallel + program) * tl.where(read, row, 0.0)) * clip
        row = moved_row(row, gradient, m_dec, v_dec, at, inside, rate, root, first, second, epsilon)
        norm = tl.sqrt(tl.sum(tl.where(inside, row * row, 0.0), axis=0))
        row = row / tl.maximum(norm, tiny)
        tl.store(W_dec + at, row, mask=inside)
        if COPY:
            tl.store(dec_copy + at, row.to(dec_copy.dtype.element_ty), mask=inside)

    row = tl.load(W_enc + at, mask=inside, other=0.0)
    gradient = tl.load(g_enc + at, mask=read, other=0.0) * clip
    row = moved_row(row, gradient, m_enc, v_enc, at, inside, rate, root, first, second, epsilon)
    tl.store(W_enc + at, row, mask=inside)
    if COPY:
        tl.store(enc_copy + at, row.to(enc_copy.dtype.element_ty), mask=inside)
