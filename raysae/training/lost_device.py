"""Errors after which a process can no longer use its GPU: whatever it does there fails.

Out of memory is not among them: what asked for too much fails alone.
"""

import torch

LOST = (
    "illegal memory access", "illegal instruction", "illegal address", "misaligned address",
    "device-side assert", "unspecified launch failure", "launch timed out", "hardware stack error",
    "invalid program counter", "uncorrectable ecc", "unrecoverable", "no longer in the system",
    "fallen off the bus", "gpu is lost", "context is destroyed", "driver shutting down",
    "device is being removed", "external device",
)  # fmt: skip
"""What CUDA, and Triton after it, say when a context is lost."""


def is_lost(error: BaseException) -> bool:
    """Whether ``error``, or what led to it, says that the GPU of this process is lost."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    text = str(error).lower()
    cuda = isinstance(error, RuntimeError) and ("cuda" in text or "device" in text)
    if cuda and any(words in text for words in LOST):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and is_lost(before)


def raise_if_lost(error: Exception) -> None:
    """Raise ``error`` when the GPU of this process is lost: no training that is left can go on."""
    if is_lost(error):
        raise error
