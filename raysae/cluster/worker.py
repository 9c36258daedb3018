"""What every Ray worker of raysae does first: set its threads and choose its device."""

import os


def prepare_worker() -> str:
    """Set torch's threads to the CPUs that Ray reserved; return the device, ``cuda`` or ``cpu``.

    The device follows from Ray's allocation and not from ``cuda.is_available()``, because a worker
    without a GPU of its own still sees every GPU of the node. When torch cannot use the GPU (a logical
    one, or a CPU build of torch), the worker uses the CPU; the tables' ``device`` column shows it.
    """
    import ray
    import torch

    from raysae.training.memory import map_large_tensors

    map_large_tensors()
    torch.set_num_threads(max(int(os.environ.get("OMP_NUM_THREADS", "1")), 1))
    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return "cuda" if gpus and torch.cuda.is_available() else "cpu"


def memory_used(device: str) -> int:
    """Peak memory in bytes: torch's on the GPU, or this process's on the CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
