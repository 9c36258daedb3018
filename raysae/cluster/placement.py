"""How many workers fit on the connected Ray, and what each reserves."""

import math
from dataclasses import dataclass

from raysae.config import ResourcesConfig
from raysae.errors import UserError

AUTO_GPU_SHARE = 0.25
READER_CPUS = 0.5
"""What a trial that streams its rows reserves for its readers."""


@dataclass(frozen=True)
class Placement:
    """What one worker reserves, and how many run at once."""

    cpus: float
    gpus: float
    workers: int

    @property
    def resources(self) -> dict[str, float]:
        return {"cpu": self.cpus, "gpu": self.gpus}

    @property
    def ray_options(self) -> dict[str, float]:
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} at once, {self.cpus:g} CPU{gpus} each"


def place(resources: ResourcesConfig) -> Placement:
    """Fit workers to the connected Ray. Raises UserError when not even one fits."""
    import ray

    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    asked = resources.gpus_per_trial
    share = (AUTO_GPU_SHARE if gpus else 0.0) if asked == "auto" else asked
    for name, wanted, found in (("cpus", resources.cpus_per_trial, cpus), ("gpus", share, gpus)):
        if wanted > found:
            raise UserError(
                f"resources.{name}_per_trial is {wanted:g}, but this Ray has {found:g} "
                f"{name[:-1].upper()}s in all; lower it"
            )
    fit = math.floor(cpus / resources.cpus_per_trial + 1e-9)
    if share:
        per_gpu = math.floor(1 / share + 1e-9) if share <= 1 else 1 / math.ceil(share)
        fit = min(fit, math.floor(gpus * per_gpu + 1e-9))
    return Placement(resources.cpus_per_trial, share, min(fit, resources.max_concurrent or fit))


def place_extraction(resources: ResourcesConfig) -> Placement:
    """Workers of an extraction: one whole GPU each where Ray has any and they are not given up by
    ``gpus_per_trial=0``, else CPUs. Raises UserError when not even one fits."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0.0) >= 1 and resources.gpus_per_trial != 0
    return place(resources.model_copy(update={"gpus_per_trial": 1 if gpus else 0}))


def place_streaming(resources: ResourcesConfig) -> Placement:
    """Trials with a share of a CPU for their readers, where the machine has one to spare."""
    import ray

    wanted = resources.cpus_per_trial + READER_CPUS
    spare = wanted <= ray.cluster_resources().get("CPU", 0.0)
    return place(resources.model_copy(update={"cpus_per_trial": wanted}) if spare else resources)
