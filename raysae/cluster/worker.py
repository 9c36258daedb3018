"""What every Ray worker of raysae does first: set its threads and choose its device."""

import os
import sys
from contextlib import suppress

from raysae.cluster.gpus import are_logical, limit_memory, look_here
from raysae.errors import UserError


def prepare_worker() -> str:
    """Set torch's threads to the CPUs that Ray reserved; return the device, ``cuda`` or ``cpu``.

    The device follows from Ray's allocation and not from ``cuda.is_available()``, because a worker
    without a GPU of its own still sees every GPU of the node. A worker with a fraction of a GPU is
    held to that fraction of its memory. Raises UserError when torch cannot use the GPU, rather than
    train on the CPU unseen.
    """
    import ray
    import torch

    from raysae.training.memory import map_large_tensors

    map_large_tensors()
    torch.set_num_threads(max(int(os.environ.get("OMP_NUM_THREADS", "1")), 1))
    here = ray.get_runtime_context()
    if not here.get_accelerator_ids().get("GPU", []) or are_logical():
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(
            f"Ray gave this worker a GPU that torch cannot use: {look_here()}. Check the node's driver "
            "and its build of torch, or set resources.gpus_per_trial=0"
        )
    share = here.get_assigned_resources().get("GPU", 1.0)
    if share < 1:
        limit_memory(share)
    return "cuda"


def memory_used(device: str) -> int:
    """Peak memory in bytes: torch's on the GPU, or this process's on the CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    with suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Let ``memory_used("cpu")`` begin again: this process may have done other work before. It does
    nothing where the system offers no such thing."""
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def end_if_lost(error: Exception) -> None:
    """End this process when ``error`` says that its GPU is lost; its work is then done by another."""
    from raysae.training.lost_device import is_lost

    if is_lost(error):
        print(
            f"raysae: the GPU of this worker is lost, so it ends: {error}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
