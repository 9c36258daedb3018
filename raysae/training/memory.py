"""Memory of a training: an estimate of its size, and a check that the device has enough."""

import ctypes
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

from raysae.sae import SAEConfig
from raysae.sae.config import KConfig
from raysae.sae.dictionary import match_bytes
from raysae.training.config import TrainingConfig

FLOAT, DOUBLE = 4, 8
SPARSE_SHARE = 0.02
"""Up to this part of active latents the kernels that read those alone are taken for faster than whole
products; a GPU has yet to say where the crossover is."""
STATISTICS_ROWS = 4096
"""Rows of a batch or sample from which statistics are computed, in float64."""
MMAP_THRESHOLD, LARGE = -3, 16 * 2**20
"""glibc's number of that option, and the size of a tensor, in bytes, that is worth it."""
TRIM_FROM = 64 * 2**20
"""A training of fewer bytes leaves too little freed memory to be worth giving back."""


def training_bytes(d_in: int, d_sae: int, training: TrainingConfig) -> int:
    """Peak memory of one training in bytes, an upper estimate.

    It counts the weights, the gradients, Adam's two moments, the copies in bfloat16, and the rows
    and latents of one batch.
    """
    weights = 2 * d_in * d_sae
    copies = weights * FLOAT // 2 if training.precision == "bfloat16" else 0
    batch = training.batch_size * (3 * d_in + 4 * d_sae) * FLOAT
    return 4 * weights * FLOAT + copies + batch


def packed_bytes(d_in: int, config: KConfig, training: TrainingConfig, fast: bool = True) -> int:
    """Peak memory of one SAE in a packed program in bytes, without its rows, an upper estimate.

    ``fast``: whether its passes are kernels. Weights, moments and copies in bfloat16 stay; the
    temporaries of a step exist twice, in the pool of the graphs and outside of it, where the first steps
    of each kind and the evaluations run.
    """
    weights = 2 * d_in * config.d_sae * FLOAT
    kept = 3 * weights + (weights // 2 if training.precision == "bfloat16" else 0)
    plain = _temporaries(d_in, config, training, fast, aux=False)
    whole = (
        _temporaries(d_in, config, training, fast, aux=True) if config.aux_coefficient else plain
    )
    return kept + 64 * config.d_sae + plain + whole


def _temporaries(
    d_in: int, config: KConfig, training: TrainingConfig, fast: bool, aux: bool
) -> int:
    """Bytes of a packed step's temporaries at their peak; ``aux``: of one whose latents are all dead.

    The factors are those that a count of the tensors' bytes on torch's meta device gives.
    """
    weights, batch = 2 * d_in * config.d_sae * FLOAT, training.batch_size
    latents, own = batch * config.d_sae, 2 if training.precision == "bfloat16" else FLOAT
    rows, entries = 3 * batch * d_in * FLOAT, 48 * batch * min(config.k, config.d_sae)
    of_aux = 2.6 * weights + latents * (1 + 2.9 * own)
    if config.k <= SPARSE_SHARE * config.d_sae and fast:
        steps = max(1.02 * weights + 1.02 * own * latents, of_aux if aux else 0)
    else:
        steps = (1.85 + 1.5 * aux) * weights + (1 + 3 * own) * latents
        steps = max(steps, of_aux + own * latents if aux else 0)
    if not fast:  # plain torch ranks the latents by sorting them
        steps += 48 * latents
    counts = 2**22 if config.variant == "batch_topk" else 0
    return int(steps + rows + entries + counts)


def peak_bytes(d_in: int, d_sae: int, training: TrainingConfig, together: int, seeds: int) -> int:
    """Peak memory in bytes of a worker that trains ``together`` SAEs, from the rows' statistics to the
    written files, without the rows; ``seeds`` of them are at one site.

    The steps take the most, except where the dictionaries of several seeds are matched.
    """
    steps = together * training_bytes(d_in, d_sae, training)
    matching = 0
    if seeds > 1:  # the weights of all, the live rows of the seeds
        matching = (2 * together + seeds) * d_in * d_sae * FLOAT + match_bytes(d_sae, d_in)
    return max(steps, matching, STATISTICS_ROWS * d_in * (FLOAT + 2 * DOUBLE + FLOAT))


def give_back(freed: int = TRIM_FROM) -> None:
    """Give freed memory back to the system, where ``freed`` bytes or more were.

    The C library would keep most of it, in pieces that the next SAE's tensors do not fit into.
    """
    trim = _of_c("malloc_trim")
    if freed >= TRIM_FROM and trim is not None:
        trim(0)


def map_large_tensors() -> None:
    """From now on, give a freed tensor of ``LARGE`` bytes back at once.

    By itself the C library changes its limit to the largest tensor that was freed, up to 32 MiB, and the
    memory of smaller ones stays in pieces.
    """
    if (mallopt := _of_c("mallopt")) is not None:
        mallopt(MMAP_THRESHOLD, LARGE)


@cache
def _of_c(name: str) -> Callable[..., int] | None:
    """A function of glibc; None with another C library."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None


def largest_d_sae(d_in: int, available: float, training: TrainingConfig) -> int:
    """The largest d_sae whose training takes at most ``available`` bytes; below 1: none."""
    fixed = training_bytes(d_in, 0, training)
    return math.floor((available - fixed) / (training_bytes(d_in, 1, training) - fixed))


def free_bytes(device: str) -> int | None:
    """Free memory of ``device`` in bytes; None when it is not known.

    On a GPU it includes the blocks that torch has cached in this process, and is no more than is left of
    the fraction that the process may take.
    """
    if device.startswith("cuda"):
        import torch

        allocated = torch.cuda.memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        share = torch.cuda.get_per_process_memory_fraction(device)
        cached = torch.cuda.memory_reserved(device) - allocated
        return min(free + cached, max(int(share * total) - allocated, 0))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines)
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None


def release_cached(device: str) -> None:
    """Give the blocks that torch has cached on a GPU back to it; on a CPU there are none."""
    if device.startswith("cuda"):
        import torch

        with torch.cuda.device(device):
            torch.cuda.empty_cache()


def require_room(config: SAEConfig, d_in: int, training: TrainingConfig, device: str) -> None:
    """Raises ValueError, naming a d_sae that fits, when training needs more memory than is free."""
    free, needed = free_bytes(device), training_bytes(d_in, config.d_sae, training)
    if free is None or needed <= free:
        return
    d_sae = max(largest_d_sae(d_in, free, training), 1)
    raise ValueError(
        f"d_sae {config.d_sae:,} at d_in {d_in:,} and batch_size {training.batch_size:,} takes "
        f"{needed / 2**30:.1f} GiB to train; {device} has {free / 2**30:.1f} GiB free; "
        f"a d_sae of {d_sae:,} fits, or a smaller batch_size, or another device"
    )
