"""What every Ray worker of raysae does first: take the device and the threads it was given."""

import os


def prepare_worker() -> str:
    """Set torch's threads to the CPUs that Ray reserved here; return the device to use.

    The device follows from Ray's allocation and not from ``cuda.is_available()``: without a GPU
    of its own, a worker still sees every GPU of the node. A GPU that torch cannot use (a logical one,
    or a CPU build) leaves the worker on the CPU; the tables' ``device`` column shows it.
    """
    import ray
    import torch

    torch.set_num_threads(max(int(os.environ.get("OMP_NUM_THREADS", "1")), 1))
    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return "cuda" if gpus and torch.cuda.is_available() else "cpu"


def memory_used(device: str) -> int:
    """The most bytes that torch held on the GPU; on a CPU, the most that this process held."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
