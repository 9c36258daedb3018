"""TopK's selection: the k largest positive values of each row, of any length."""

import triton
import triton.language as tl

from raysae.training.fused.kernels.keys import keys_of, kth_largest


@triton.jit
def part_keys(pre, bias, start, columns, PART: tl.constexpr):  # type: ignore[no-untyped-def]
    """The keys of the part of a row that begins at ``start``; 0 beyond its end."""
    place = start + tl.arange(0, PART)
    inside = place < columns
    value = tl.load(pre + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + place, mask=inside, other=0.0)
    return tl.where(inside, keys_of(value), 0)


@triton.jit
def select_rows(  # type: ignore[no-untyped-def]
    pre, bias, k_N, real, value, column, row_out, count, found_key, found_place, rows, columns, slots,
    PART: tl.constexpr, ROOM: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """One program per row. The largest value of each of PART groups of columns gives a value that k
    values or more reach. Those that reach it, few more than k, are noted and searched; where they are
    more than ROOM, as of many equal ones, the row itself is searched."""
    program = tl.program_id(0).to(tl.int64)
    sae, row = program // rows, (program % rows).to(tl.int32)
    k = tl.load(k_N + sae).to(tl.int32)
    pre += program * columns
    bias += sae * columns
    largest = tl.zeros([PART], tl.int32)
    for start in range(0, columns, PART):
        key = part_keys(pre, bias, start, columns, PART)
        largest = tl.maximum(largest, key)
    low = kth_largest(largest, k)

    noted = program * ROOM
    taken = 0
    for start in range(0, columns, PART):
        key = part_keys(pre, bias, start, columns, PART)
        reaches = (key >= low).to(tl.int32)
        at = taken + tl.cumsum(reaches, axis=0) - 1
        fits = (reaches > 0) & (at < ROOM)
        tl.store(found_key + noted + at, key, mask=fits)
        tl.store(found_place + noted + at, start + tl.arange(0, PART), mask=fits)
        taken += tl.sum(reaches, axis=0)
    tl.debug_barrier()  # the notes of all threads are there

    out = program * slots
    chosen = 0
    if taken <= ROOM:
        slot = tl.arange(0, ROOM)
        key = tl.load(found_key + noted + slot, mask=slot < taken, other=0)
        place = tl.load(found_place + noted + slot, mask=slot < taken, other=0)
        low = kth_largest(key, k)
        above = key > low
        equal = (key == low).to(tl.int32)
        room = k - tl.sum(above.to(tl.int32), axis=0)
        kept = (above | ((equal > 0) & (tl.cumsum(equal, axis=0) <= room))).to(tl.int32)
        at = out + tl.cumsum(kept, axis=0) - 1
        tl.store(value + at, key.to(tl.float32, bitcast=True), mask=kept > 0)
        tl.store(column + at, place, mask=kept > 0)
        chosen = tl.sum(kept, axis=0)
    else:
        high = tl.minimum(tl.max(largest, axis=0), 0x7FFFFFFE) + 1
        while high - low > 1:
            probe = low + (high - low) // 2
            reaching = 0
            for start in range(0, columns, PART):
                key = part_keys(pre, bias, start, columns, PART)
                reaching += tl.sum((key >= probe).to(tl.int32), axis=0)
            if reaching >= k:
                low = probe
            else:
                high = probe
        more = 0
        for start in range(0, columns, PART):
            key = part_keys(pre, bias, start, columns, PART)
            more += tl.sum((key > low).to(tl.int32), axis=0)
        room = k - more
        for start in range(0, columns, PART):
            key = part_keys(pre, bias, start, columns, PART)
            equal = (key == low).to(tl.int32)
            kept = ((key > low) | ((equal > 0) & (tl.cumsum(equal, axis=0) <= room))).to(tl.int32)
            at = out + chosen + tl.cumsum(kept, axis=0) - 1
            tl.store(value + at, key.to(tl.float32, bitcast=True), mask=kept > 0)
            tl.store(column + at, start + tl.arange(0, PART), mask=kept > 0)
            chosen += tl.sum(kept, axis=0)
            room -= tl.sum(equal, axis=0)
    if row >= tl.load(real):  # it only pads the batch
        chosen = 0
    tl.debug_barrier()
    slot = tl.arange(0, SLOTS)
    none = (slot >= chosen) & (slot < slots)
    tl.store(value + out + slot, tl.zeros([SLOTS], tl.float32), mask=none)
    tl.store(column + out + slot, tl.zeros([SLOTS], tl.int32) + columns, mask=none)
    tl.store(row_out + out + slot, tl.zeros([SLOTS], tl.int32) + row, mask=slot < slots)
    tl.store(count + program, chosen)
