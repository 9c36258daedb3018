"""Compile the Triton kernels ahead of time for GPUs that are not here, and say what they spill.

    python scripts/compile_kernels.py [--arch 80 90] [--all]

Needs Triton, which brings the assembler (ptxas), and no GPU. The steps of several shapes are made on
torch's meta device; each kernel that they launch is compiled for them, and the assembler tells its
registers and spills. Exit code 1 where a kernel spills; 0 and a word where Triton is not installed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from raysae.sae import SAEConfig, build_sae, sae_config
from raysae.training import TrainingConfig
from raysae.training.fused.launching import Launch, kernel, recorded
from raysae.training.packed import PackedStep

SHAPES = ((768, 24_576, 32), (768, 65_536, 512), (96, 1024, 8))
WIDER = ((8192, 131_072, 64), (2048, 65_536, 128), (5120, 4096, 512), (12, 70, 1))
"""d_in, d_sae and k; the second ones with ``--all``."""
KINDS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64",
    torch.bool: "*i1",
}  # fmt: skip
"""Pointers to tensors, as Triton names them."""
BATCH, COLUMNS = 4096, 1024


def packed_on_meta(
    d_in: int, d_sae: int, k: int, batch: int, *, saes: int = 1, variant: str = "topk",
    precision: str = "bfloat16", frozen: bool = False,
) -> PackedStep:  # fmt: skip
    """A packed step whose tensors have no contents."""
    config = sae_config({"variant": variant, "d_sae": d_sae, "k": k})
    training = TrainingConfig(
        batch_size=batch, precision=precision, frozen="decoder" if frozen else None
    )
    with torch.device("meta"):
        models = [_sae_on_meta(config, d_in) for _ in range(saes)]
        for model in models:
            model.W_dec.requires_grad_(not frozen)
        since_fired = [torch.zeros(d_sae, dtype=torch.int64) for _ in models]
        return PackedStep(models, [training] * saes, [10**6] * saes, since_fired, 10)


def _sae_on_meta(config: SAEConfig, d_in: int) -> Any:
    made = build_sae(sae_config({"variant": config.variant, "d_sae": 1, "k": 1}), d_in).to("meta")
    made.config, d_sae = config, config.d_sae
    shapes = {"W_dec": (d_sae, d_in), "W_enc": (d_in, d_sae), "b_enc": (d_sae,), "b_dec": (d_in,)}
    for name, shape in shapes.items():
        setattr(made, name, torch.nn.Parameter(torch.empty(shape, device="meta")))
    return made


def launches(shapes: tuple[tuple[int, int, int], ...]) -> Iterator[Launch]:
    """What the steps of these shapes launch, each kernel once for the same types and constants."""
    known = set()
    variants = (("topk", False), ("topk", True), ("batch_topk", False))
    kinds = product(shapes, variants, ("float32", "bfloat16"), (0, COLUMNS))
    for (d_in, d_sae, k), (variant, frozen), precision, columns in kinds:
        step = packed_on_meta(
            d_in, d_sae, k, BATCH, variant=variant, precision=precision, frozen=frozen
        )
        x_NBD = torch.empty(1, BATCH, d_in, device="meta")
        with torch.no_grad(), recorded() as log:
            rows = torch.empty((), dtype=torch.int64, device="meta")
            step._train(x_NBD, rows, min(columns, d_sae))
        for made in log:
            types = tuple(sorted((name, one.dtype) for name, one in made.tensors.items()))
            key = made.kernel, str(types), tuple(made.constants.items()), made.warps
            if key not in known:
                known.add(key)
                yield made


def compiled(made: Launch, arch: int) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills, where the kernel is compiled for ``sm_arch``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    function, signature, aligned = kernel(made.kernel), {}, {}
    for place, name in enumerate(function.arg_names):
        number = made.numbers.get(name)
        if name in made.tensors:
            signature[name] = KINDS[made.tensors[name].dtype]
        elif number is not None:
            signature[name] = "i32" if isinstance(number, int) else "fp32"
        else:
            signature[name] = "constexpr"
        if name in made.tensors or (isinstance(number, int) and number % 16 == 0):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=dict(made.constants), attrs=aligned)
    built = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": made.warps}
    )
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(built.asm["ptx"])
        file.flush()
        name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        told = subprocess.run(
            [get_ptxas(arch).path, "-v", "--gpu-name", name, file.name, "-o", "/dev/null"],
            check=True, capture_output=True, text=True,
        ).stderr  # fmt: skip
    spills = [int(found) for found in re.findall(r"(\d+) bytes spill", told)]
    return int(re.findall(r"Used (\d+) registers", told)[0]), sum(spills)


def main() -> int:
    """Print a line for each kernel; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--all", action="store_true", help="wider and narrower shapes, too")
    arguments = parser.parse_args()
    if find_spec("triton") is None:
        print("skipped: Triton is not installed here; pip install triton brings it and its ptxas")
        return 0
    every, worst = list(launches(SHAPES + (WIDER if arguments.all else ()))), 0
    for arch, made in product(arguments.arch, every):
        registers, spilled = compiled(made, arch)
        worst = max(worst, spilled)
        constants = " ".join(f"{name}={value}" for name, value in made.constants.items())
        print(f"sm_{arch} {made.kernel:17} {registers:3} registers, {spilled} bytes spilled;"
              f" {made.warps} warps, {constants}", flush=True)  # fmt: skip
    print(f"{len(every)} kernels for {len(arguments.arch)} GPUs; {worst} bytes spilled at most")
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
