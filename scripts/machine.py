"""The machine of a benchmark: its name, and its measured speed of matrix products and memory.

The floor of a step of a dense TopK SAE on B rows: 10 d_in d_sae B floating-point operations (encode
and decode 2 each, dz and dW_dec 4, dW_enc 2) at the speed of matrix products, or the bytes that
Adam (32 per parameter) and the batch must move, whichever takes longer. A step that uses only
active latents does less arithmetic and can be faster.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Rates:
    """Speeds that the machine reaches with some number of threads."""

    flops: float
    """Floating-point operations per second in matrix products of the step's shapes."""
    bandwidth: float
    """Bytes read and written per second."""

    def floor_seconds(self, d_in: int, d_sae: int, batch: int) -> float:
        """The least time of a dense step, in seconds."""
        arithmetic = 10 * d_in * d_sae * batch / self.flops
        moved = 32 * 2 * d_in * d_sae + 2 * 4 * d_in * batch
        return max(arithmetic, moved / self.bandwidth)


def measured_rates(d_in: int, d_sae: int, batch: int, dtype: torch.dtype, device: str) -> Rates:
    """Measure the rates of this machine with torch's current number of threads."""
    x = torch.randn(batch, d_in, device=device).to(dtype)
    z = torch.randn(batch, d_sae, device=device).to(dtype)
    W = torch.randn(d_sae, d_in, device=device).to(dtype)
    products = [lambda: x @ W.T, lambda: z @ W, lambda: z.T @ x]
    flops = max(2 * d_in * d_sae * batch / fastest(run, device) for run in products)
    a = torch.randn(32 * 2**20, device=device)  # 128 MB, larger than the processor's inner caches
    b = torch.randn_like(a)
    bandwidth = 12 * len(a) / fastest(lambda: a.add_(b), device)
    return Rates(flops, bandwidth)


def fastest(run: Callable[[], object], device: str, seconds: float = 0.3) -> float:
    """The shortest of many runs, in seconds; runs for about ``seconds``."""
    run()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: str = "cpu") -> str:
    """The name of the processor or GPU, its number of cores and the version of torch."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    units = [
        unit for unit in ("amx_bf16", "avx512_bf16", "avx512f") if f" {unit}" in "".join(lines)
    ]
    known = f" with {', '.join(units)}" if units else ""
    return f"{name}{known}, {os.cpu_count()} cores, torch {torch.__version__}"
