"""BatchTopK's selection: the largest positive values of a whole batch, by histograms of their keys.

A histogram counts a digit of the keys: those that have the digits before it. So the threshold is known
digit by digit; then the values above it are counted and written row by row.
"""

import triton
import triton.language as tl

from raysae.training.fused.kernels.selection import part_keys


@triton.jit
def count_digits(  # type: ignore[no-untyped-def]
    pre, bias, real, prefix_N, counts, rows, columns, programs, above, below,
    PART: tl.constexpr, DIGITS: tl.constexpr,
):  # fmt: skip
    """Each program has every ``programs``-th row of an SAE. A key's digit is its bits from ``below`` up
    to ``above``; counted are keys whose bits from ``above`` on are the prefix."""
    program = tl.program_id(0).to(tl.int64)
    sae, own = program // programs, (program % programs).to(tl.int32)
    prefix = tl.load(prefix_N + sae)
    last = tl.minimum(rows, tl.load(real).to(tl.int32))
    found = tl.zeros([DIGITS], tl.int32)
    for row in range(own, last, programs):
        for start in range(0, columns, PART):
            key = part_keys(
                pre + (sae * rows + row) * columns, bias + sae * columns, start, columns, PART
            )
            counted = (key > 0) & ((key >> above) == prefix)
            found += tl.histogram((key >> below) & (DIGITS - 1), DIGITS, mask=counted)
    tl.store(counts + program * DIGITS + tl.arange(0, DIGITS), found)


@triton.jit
def count_chosen(  # type: ignore[no-untyped-def]
    pre, bias, real, threshold_N, more, equal, rows, columns, PART: tl.constexpr
):
    """One program per row: how many keys are above the threshold, and how many are equal to it."""
    program = tl.program_id(0).to(tl.int64)
    sae = program // rows
    threshold = tl.load(threshold_N + sae)
    above = 0
    same = 0
    if program % rows < tl.load(real):
        for start in range(0, columns, PART):
            key = part_keys(pre + program * columns, bias + sae * columns, start, columns, PART)
            above += tl.sum((key > threshold).to(tl.int32), axis=0)
            same += tl.sum((key == threshold).to(tl.int32), axis=0)
    tl.store(more + program, above)
    tl.store(equal + program, same)


@triton.jit
def write_chosen(  # type: ignore[no-untyped-def]
    pre, bias, threshold_N, first_NB, count_NB, room_NB, value, column, row_out, rows, columns, slots,
    PART: tl.constexpr,
):  # fmt: skip
    """One program per row: write the keys above the threshold, and the first ``room`` equal to it."""
    program = tl.program_id(0).to(tl.int64)
    sae = program // rows
    threshold = tl.load(threshold_N + sae)
    room = tl.load(room_NB + program)
    out = sae * slots + tl.load(first_NB + program)
    if tl.load(count_NB + program) > 0:
        for start in range(0, columns, PART):
            key = part_keys(pre + program * columns, bias + sae * columns, start, columns, PART)
            equal = (key == threshold).to(tl.int32)
            kept = (key > threshold) | ((equal > 0) & (tl.cumsum(equal, axis=0) <= room))
            kept_int = kept.to(tl.int32)
            place = start + tl.arange(0, PART)
            at = out + tl.cumsum(kept_int, axis=0) - 1
            tl.store(value + at, key.to(tl.float32, bitcast=True), mask=kept)
            tl.store(column + at, place, mask=kept)
            row = tl.zeros([PART], tl.int32) + (program % rows).to(tl.int32)
            tl.store(row_out + at, row, mask=kept)
            out += tl.sum(kept_int, axis=0)
            room -= tl.sum(equal, axis=0)
