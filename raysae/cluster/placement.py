"""How many workers fit on the connected Ray, and what each reserves."""

import math
from dataclasses import dataclass, replace

from raysae.cluster.gpus import check_fits, least_memory
from raysae.config import ResourcesConfig
from raysae.errors import UserError

AUTO_GPUS = 1
"""The GPUs that ``auto`` reserves: processes that share one only take turns, while packs fill it."""
PROCESS = 450 * 2**20
"""Bytes of a worker that has imported torch and Ray, before its first training."""
MEMORY_FRACTION = 0.9
"""The fraction of a node's memory that trials may take."""
READER_CPUS = 0.5
"""CPUs that a trial reserves for its reader threads when it streams its rows."""


@dataclass(frozen=True)
class Placement:
    """What one worker reserves (``cpus`` and ``gpus``), and how many ``workers`` run at once."""

    cpus: float
    gpus: float
    workers: int

    @property
    def resources(self) -> dict[str, float]:
        """The reservation as Ray Tune's ``with_resources`` takes it."""
        return {"cpu": self.cpus, "gpu": self.gpus}

    @property
    def ray_options(self) -> dict[str, float]:
        """The reservation as options of a Ray task or actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} at once, {self.cpus:g} CPU{gpus} each"


def place(
    resources: ResourcesConfig, memory_each: int = 0, reserved: float = 0.0, rows: int = 0
) -> Placement:
    """How many workers fit on the connected Ray, each training in up to ``memory_each`` bytes.

    ``memory_each`` 0 means unknown; ``reserved`` CPUs are left free; ``rows`` are the bytes of the rows,
    which are on the GPU where they fit. Raises UserError when not even one worker fits, or torch cannot
    use the GPUs.
    """
    import ray

    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0.0) - reserved, there.get("GPU", 0.0)
    asked = resources.gpus_per_trial
    fraction = (AUTO_GPUS if gpus else 0.0) if asked == "auto" else asked
    for name, wanted, found in (("cpus", resources.cpus_per_trial, cpus), ("gpus", fraction, gpus)):
        if wanted > found:
            raise UserError(
                f"resources.{name}_per_trial is {wanted:g}, but this Ray has {found:g} "
                f"{name[:-1].upper()}s in all; lower it"
            )
    fit = math.floor(cpus / resources.cpus_per_trial + 1e-9)
    if fraction:
        memory = least_memory()
        if memory is not None:
            held = rows if rows <= memory.free * fraction / 2 else 0
            check_fits(fraction, memory_each + held, memory)
        fit = min(fit, math.floor(gpus * math.floor(1 / fraction + 1e-9) + 1e-9))
    elif memory_each:
        fit = min(fit, _fit_memory(memory_each, there.get("memory", math.inf)))
    return Placement(resources.cpus_per_trial, fraction, min(fit, resources.max_concurrent or fit))


def _fit_memory(memory_each: int, there: float) -> int:
    """How many workers fit in ``there``, the bytes of memory that Ray may use."""
    needed = memory_each + PROCESS
    fit = MEMORY_FRACTION * there / needed
    if fit < 1:
        raise UserError(
            f"a trial of the largest config takes {needed / 2**30:.1f} GiB, and this Ray has "
            f"{there / 2**30:.1f} GiB in all; lower d_sae, batch_size or seeds_per_trial"
        )
    return math.floor(fit) if math.isfinite(fit) else 1_000_000


def place_extraction(resources: ResourcesConfig) -> Placement:
    """The workers of an extraction: one whole GPU each if Ray has any, else CPUs.

    ``gpus_per_trial=0`` means CPUs. Raises UserError when not even one worker fits.
    """
    import ray

    gpus = ray.cluster_resources().get("GPU", 0.0) >= 1 and resources.gpus_per_trial != 0
    return place(resources.model_copy(update={"gpus_per_trial": 1 if gpus else 0}))


def place_streaming(resources: ResourcesConfig) -> Placement:
    """Trials with READER_CPUS more for their readers, if Ray has that many CPUs.

    Raises UserError when not even one trial fits.
    """
    import ray

    wanted = resources.cpus_per_trial + READER_CPUS
    spare = wanted <= ray.cluster_resources().get("CPU", 0.0)
    return place(resources.model_copy(update={"cpus_per_trial": wanted}) if spare else resources)


def beside_live(resources: ResourcesConfig) -> tuple[Placement, Placement]:
    """The trials, and the workers that compute live rows for them.

    On CPUs there are as many of these as trials, and each of both reserves half of a trial's CPUs: while
    trials wait for rows the others use their CPUs, and the reverse. Trials of several CPUs, whose results
    depend on the number of their threads, keep them and leave half of the workers to computing. On GPUs
    one worker computes, on the fraction of a GPU that a trial has; a single GPU is halved. Raises
    UserError when not even one of each fits.
    """
    every = place(resources)
    if every.gpus and every.workers < 2 and resources.gpus_per_trial == "auto":
        every = place(resources.model_copy(update={"gpus_per_trial": 0.5}))
    if every.workers < 2 and (every.gpus or every.cpus > 1):
        raise UserError(
            f"source.live: {every.workers} worker of {every.cpus:g} CPU and {every.gpus:g} GPU fits on "
            "this Ray, but one must compute rows while another trains; lower resources.cpus_per_trial or "
            "resources.gpus_per_trial, raise resources.cpus, or set source.live to false"
        )
    if every.gpus:
        return replace(every, workers=every.workers - 1), replace(every, workers=1)
    half = replace(every, cpus=every.cpus / 2)
    if every.cpus <= 1:
        return half, half
    computing = max(every.workers // 2, 1)
    return replace(every, workers=every.workers - computing), replace(half, workers=2 * computing)


def scan_cpus() -> float:
    """The CPUs that the scans use on the connected Ray: one a node."""
    import ray

    return float(sum(node["Alive"] for node in ray.nodes()))


def can_scan(resources: ResourcesConfig) -> bool:
    """Whether a trial fits beside the CPUs that the scans use."""
    import ray

    return ray.cluster_resources().get("CPU", 0.0) - scan_cpus() >= resources.cpus_per_trial


def beside_scans(resources: ResourcesConfig) -> Placement:
    """The trials that fit beside the CPUs that the scans use: Ray Data waits for ever for a CPU when
    trials hold them all.

    Raises UserError when not even one trial fits.
    """
    import ray

    if not can_scan(resources):
        cpus = ray.cluster_resources().get("CPU", 0.0)
        raise UserError(
            f"resources.reading is scan: reading takes {scan_cpus():g} of the {cpus:g} CPUs that this "
            f"Ray has, and no trial of resources.cpus_per_trial={resources.cpus_per_trial:g} fits then; "
            "lower it, raise resources.cpus, or set resources.reading to streaming"
        )
    return place(resources, reserved=scan_cpus())
