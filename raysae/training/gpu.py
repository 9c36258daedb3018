"""What a packed step does on a GPU alone: kernels in Triton, and CUDA graphs.

For tests, ``TRITON_INTERPRET=1`` runs the kernels on CPU tensors. Where Triton is not installed, or
cannot be used, ``launches`` is false and the passes are torch's own operations. On torch's meta device
kernels are only recorded (``raysae.training.fused.launching``).
"""

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def launches(device: torch.device) -> bool:
    """Whether kernels are launched on ``device``: it is a GPU, and Triton is there."""
    if device.type == "meta":
        return True
    return (device.type == "cuda" or INTERPRETED) and why_no_kernels() is None


@cache
def why_no_kernels() -> str | None:
    """Why Triton's kernels cannot run here, as with an old driver; None where they can. Said once."""
    why = "Triton is not installed"
    if find_spec("triton") is not None:
        why = _why_triton_fails()
    if why:
        warnings.warn(
            f"{why}: SAEs on a GPU train with plain torch, slower and with more memory",
            stacklevel=3,
        )
    return why or None


def _why_triton_fails() -> str:
    try:
        from triton.runtime import driver

        if not INTERPRETED:
            driver.active.get_current_target()
    except Exception as error:  # whatever it is, torch can do without
        return f"Triton cannot be used here ({type(error).__name__}: {error})"
    return ""


def captures(tensor: Tensor) -> bool:
    """Whether steps on ``tensor`` are captured as CUDA graphs: it is on a GPU."""
    return tensor.is_cuda


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes ``device`` the current one while the block runs, as launches and captures need it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def new_pool() -> Any:
    """A pool of memory that several graphs can share."""
    return torch.cuda.graph_pool_handle()


def captured(work: Callable[[], None], pool: Any, device: torch.device) -> Callable[[], object]:
    """Capture what ``work`` launches on ``device``, without running it; returns what runs it."""
    graph = torch.cuda.CUDAGraph()
    # torch's own stream for captures is one of the device that captured first
    with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.Stream(device)):
        work()
    return graph.replay
