"""Keys that order pre-activations, see ``raysae.training.fused.entries``, and a search among them."""

import triton
import triton.language as tl


@triton.jit
def keys_of(value):  # type: ignore[no-untyped-def]
    """The keys of float32 values."""
    value = tl.where(value <= 0, 0.0, value)
    return value.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def kth_largest(key, k):  # type: ignore[no-untyped-def]
    """The largest key, at least 1, that k keys or more reach; 1 where fewer than k are positive."""
    low = 1
    high = tl.minimum(tl.max(key, axis=0), 0x7FFFFFFE) + 1
    if tl.sum((key > 0).to(tl.int32), axis=0) < k:
        high = 2
    while high - low > 1:
        probe = low + (high - low) // 2
        if tl.sum((key >= probe).to(tl.int32), axis=0) >= k:
            low = probe
        else:
            high = probe
    return low
