"""The GPUs of the connected Ray: whether torch can use them, their memory, and what sharing one costs."""

import os
from dataclasses import dataclass
from typing import Any

from raysae.errors import UserError

CUDA_CONTEXT = 600 * 2**20
"""Bytes that a process takes on a GPU before its first tensor."""
LOOK_SECONDS = 60
"""Seconds to wait for a task that looks at a GPU."""
LOGICAL = "RAYSAE_LOGICAL_GPUS"
"""Set to 1, this variable says that Ray's GPUs are numbers for its bookkeeping alone, as in tests: what
reserves one works on the CPU."""


@dataclass(frozen=True)
class Memory:
    """The memory of a GPU, in bytes."""

    free: int
    total: int


_looked: dict[str, list[Memory | str]] = {}
"""What was seen, by Ray job: the free memory at the beginning, before anything is trained."""


def least_memory() -> Memory | None:
    """The memory of the fullest GPU among one of each node; None when it is not known.

    Raises UserError when torch cannot use the GPUs of a node, as a CPU build of it.
    """
    if are_logical():
        return None
    found = _seen()
    for one in found:
        if isinstance(one, str):
            raise UserError(
                f"Ray has GPUs that torch cannot use: {one}. Install a build of torch for them, with a "
                "driver that is new enough (pytorch.org/get-started), or set "
                "resources.gpus_per_trial=0 to train on CPUs"
            )
    memories = [one for one in found if isinstance(one, Memory)]
    return min(memories, key=lambda memory: memory.free, default=None)


def are_logical() -> bool:
    """Whether Ray's GPUs are only numbers; see LOGICAL."""
    return os.environ.get(LOGICAL) == "1"


def _seen() -> list[Memory | str]:
    """What torch sees on each node with GPUs; nothing of nodes whose GPUs are all taken."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    job = ray.get_runtime_context().get_job_id()
    if job not in _looked:
        task = ray.remote(num_gpus=0.01, num_cpus=0, max_calls=1)(look_here)
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
        looks = [
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in nodes
        ]
        _looked[job] = _answers(looks)
    return _looked[job]


def _answers(looks: list[Any]) -> list[Memory | str]:
    import ray

    ready, waiting = ray.wait(looks, num_returns=len(looks), timeout=LOOK_SECONDS)
    for task in waiting:  # all GPUs of that node are taken
        ray.cancel(task, force=True)
    found: list[Memory | str] = ray.get(ready)
    return found


def look_here() -> Memory | str:
    """The memory of this process's GPU, or why torch cannot use it."""
    import platform

    import torch

    where = f"on {platform.node()} torch {torch.__version__}"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"{where} is a build for CPUs"
    if not torch.cuda.is_available():
        return f"{where} finds no GPU ({_why()})"
    return Memory(*torch.cuda.mem_get_info())


def _why() -> str:
    """What torch says when it is to use a GPU."""
    import torch

    try:
        torch.cuda.init()
    except Exception as error:
        return str(error).strip().splitlines()[0]
    return "no reason is given"


def limit_memory(share: float) -> None:
    """Hold this process to its ``share`` of its GPU, of which CUDA itself takes some."""
    import torch

    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(max(share - CUDA_CONTEXT / total, 0.0))


def check_fits(share: float, needed: int, memory: Memory) -> None:
    """Raise UserError when ``needed`` bytes do not fit in that share of a GPU."""
    room = int(min(share * memory.total, memory.free)) - CUDA_CONTEXT
    gib = 2**30
    if share < 1 and share * memory.total <= CUDA_CONTEXT:
        raise UserError(
            f"resources.gpus_per_trial is {share:g}, which is {share * memory.total / gib:.2f} GiB of a "
            f"GPU here, but CUDA itself takes {CUDA_CONTEXT / gib:.2f} GiB of each process; raise it to "
            f"at least {(CUDA_CONTEXT + needed) / memory.total:.2f}, or leave it at auto"
        )
    if needed <= room:
        return
    part = "a GPU here has" if share == 1 else f"{share:g} of a GPU here has"
    larger = "" if share == 1 else ", raise resources.gpus_per_trial"
    raise UserError(
        f"a trial of the largest config takes {(needed + CUDA_CONTEXT) / gib:.1f} GiB, and {part} "
        f"{(room + CUDA_CONTEXT) / gib:.1f} GiB free; lower d_sae, batch_size, seeds_per_trial or "
        f"resources.gang{larger}, or set resources.gpus_per_trial=0"
    )


def cost_of_sharing(share: float) -> str | None:
    """What processes that share a GPU cost, in words; None where none does."""
    if not 0 < share < 1:
        return None
    return (
        f"Up to {int(1 / share + 1e-9)} processes share a GPU: they take turns on it unless MPS runs; "
        f"each takes {CUDA_CONTEXT / 2**30:.1f} GiB for CUDA itself and may fill {share:.0%} of its "
        "memory. resources.gpus_per_trial=auto has one process a GPU; with resources.gang=N it trains N "
        "trials of one shape in one go"
    )
