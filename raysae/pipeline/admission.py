"""How many trials run at once: as many as fit in memory, measured where an estimate is too coarse."""

import uuid
from dataclasses import dataclass, replace

import torch

from raysae.cluster.gpus import cost_of_sharing
from raysae.cluster.placement import Placement, place
from raysae.cluster.worker import memory_used, prepare_worker
from raysae.config import Recipe, ResourcesConfig
from raysae.console.board import console
from raysae.errors import UserError
from raysae.pipeline.estimate import Needs
from raysae.sae import SAEConfig
from raysae.sae.dictionary import agreement
from raysae.training import TrainingConfig
from raysae.training.ensemble import Member, train_members
from raysae.training.memory import free_bytes
from raysae.training.placing import DEVICE_SHARE
from raysae.training.rows import Rows

BOUNDS = (0.6, 2.5)
"""A training takes between these fractions of its estimated memory; most where all latents are dead."""
STEPS = {"cpu": 2, "cuda": 4}
"""Steps of a measured training; its memory grows at the first, and on a GPU once more at the third, which
is captured."""
LOOK_SECONDS = 300
"""Seconds to wait for a measurement before the estimate is used."""


@dataclass(frozen=True)
class Admission:
    """How many trials run at once, what each reserves, and how much memory each takes."""

    placement: Placement
    memory: int
    """Bytes of a trial of the largest config; on a CPU without the base of torch and Ray."""
    measured: bool
    """Whether ``memory`` was measured in a worker; else it is an estimate."""

    @property
    def how(self) -> str:
        """``measured`` or ``estimated``: how ``memory`` was found."""
        return "measured" if self.measured else "estimated"

    def __str__(self) -> str:
        return (
            f"{self.placement}; up to {max(self.memory / 2**20, 1):,.0f} MiB a trial ({self.how})"
        )


def admit(recipe: Recipe, wanted: Needs) -> Admission:
    """How many trials of the largest config fit on the connected Ray.

    If the answer depends on how exact the estimate of memory is, the config is trained for a few steps
    in a worker and measured. Raises UserError when not even one trial fits.
    """
    beside = wanted.model_bytes
    resources, estimate = recipe.resources, wanted.memory_per_trial + beside
    rows = wanted.row_bytes
    placement = place(resources, estimate, rows=rows)
    if (cost := cost_of_sharing(placement.gpus)) is not None:
        console.print(cost)
    try:
        bounds = [place(resources, int(fraction * estimate), rows=rows) for fraction in BOUNDS]
    except UserError:  # the upper bound does not fit
        bounds = []
    if bounds and bounds[0] == bounds[1]:
        return Admission(placement, estimate, measured=False)
    console.print(f"Measuring what a trial of d_sae {wanted.largest[0].d_sae:,} takes in memory")
    memory = _measured(resources, placement, wanted)
    if memory is None:
        return Admission(placement, estimate, measured=False)
    memory += beside
    return Admission(place(resources, memory), memory, measured=True)


def _measured(resources: ResourcesConfig, placement: Placement, wanted: Needs) -> int | None:
    """Bytes that a trial of the largest config takes in a worker; None when no worker is free."""
    import ray

    # a runtime environment of its own gives a new process, whose peak memory is this trial's alone
    alone = {"env_vars": {"RAYSAE_MEASURING": uuid.uuid4().hex}}
    options = {
        "num_cpus": placement.cpus, "num_gpus": placement.gpus, "max_calls": 1, "max_retries": 0,
        "runtime_env": alone,
    }  # fmt: skip
    task = ray.remote(**options)(peak_memory).remote(
        wanted.largest, wanted.d_in, wanted.trained_together, wanted.row_bytes, wanted.seeds
    )
    try:
        return ray.get(task, timeout=LOOK_SECONDS)
    except ray.exceptions.GetTimeoutError:  # other jobs hold all resources
        ray.cancel(task, force=True)
        return None
    except (ray.exceptions.RayError, MemoryError, RuntimeError) as error:
        sae, training = wanted.largest
        raise UserError(
            f"a trial of the largest config (d_sae {sae.d_sae:,}, batch_size {training.batch_size:,}) "
            f"does not fit: a worker that tried ended with {str(error).strip().splitlines()[-1]}; lower "
            "d_sae, batch_size, seeds_per_trial or resources.gang"
        ) from None


def peak_memory(
    largest: tuple[SAEConfig, TrainingConfig], d_in: int, together: int, row_bytes: int = 0,
    seeds: int = 1,
) -> int:  # fmt: skip
    """Bytes at the peak of ``together`` trainings on noise, with evaluation and export; the dictionaries
    of ``seeds`` of them are compared.

    All latents are dead, so that AuxK takes what it can take. On a GPU, ``row_bytes`` more are held, as
    the real rows are. Runs in a worker of its own. On a CPU, what the worker held before is subtracted.
    Raises what a training raises.
    """
    device = prepare_worker()
    before = memory_used(device)
    held = _held(row_bytes, device)
    sae, few = largest[0], measured_training(largest[1], STEPS[device])
    generator = torch.Generator().manual_seed(0)
    noise = Rows(torch.randn(few.tokens or 1, d_in, generator=generator))
    members = [Member(sae, few, noise, noise, seed) for seed in range(together)]
    for member in train_members(members, device):  # all hold their memory at once, as in a trial
        if member.failure is not None:
            raise member.failure
    for member in members:
        member.trainer.release()
    for member in members:
        member.trainer.final_metrics()
        member.trainer.sae()
    agreement([[member.trainer.live_decoder() for member in members[:seeds]]])
    del held
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    return memory_used(device) - before


def measured_training(training: TrainingConfig, steps: int) -> TrainingConfig:
    """The same training, over so many steps, with all latents dead from the first one on."""
    return replace(
        training, epochs=1, tokens=steps * training.batch_size, evaluations=1, aux_window_tokens=0
    )


def _held(row_bytes: int, device: str) -> torch.Tensor | None:
    """Memory as large as the rows, where these are put on a GPU."""
    if device == "cpu" or row_bytes > DEVICE_SHARE * (free_bytes(device) or 0):
        return None
    return torch.empty(row_bytes, dtype=torch.uint8, device=device)
