"""How many trials run side by side: as many as fit in memory, measured where an estimate cannot tell."""

import uuid
from dataclasses import dataclass, replace

import torch

from raysae.cluster.placement import Placement, place
from raysae.cluster.worker import memory_used, prepare_worker
from raysae.config import Recipe, ResourcesConfig
from raysae.console.board import console
from raysae.errors import UserError
from raysae.pipeline.estimate import Needs
from raysae.sae import SAEConfig
from raysae.training import TrainingConfig
from raysae.training.ensemble import Member, train_members
from raysae.training.rows import Rows

BOUNDS = (0.6, 2.0)
"""Between which shares of its estimate a training's memory lies."""
BATCHES = 2
"""Steps that a training is measured over; its memory does not grow after the first."""
LOOK_SECONDS = 300


@dataclass(frozen=True)
class Admission:
    """What one trial may reserve, how many are trained at once, and what they take."""

    placement: Placement
    memory: int
    """Bytes of a trial of the largest config; on a CPU without what torch and Ray take in any process."""
    measured: bool
    """Whether that was seen in a worker; else it is an estimate."""

    @property
    def how(self) -> str:
        """Where ``memory`` is from, in a word."""
        return "measured" if self.measured else "estimated"

    def __str__(self) -> str:
        return (
            f"{self.placement}; up to {max(self.memory / 2**20, 1):,.0f} MiB a trial ({self.how})"
        )


def admit(recipe: Recipe, wanted: Needs) -> Admission:
    """Fit trials of the largest config to the connected Ray.

    The config is trained for some steps in a worker where it matters how much memory it takes. Raises
    UserError when not even one fits.
    """
    resources, estimate = recipe.resources, wanted.memory_per_trial
    placement = place(resources, estimate)
    try:
        bounds = [place(resources, int(share * estimate)) for share in BOUNDS]
    except UserError:  # the upper one does not fit at all
        bounds = []
    if bounds and bounds[0] == bounds[1]:
        return Admission(placement, estimate, measured=False)
    console.print(f"Measuring what a trial of d_sae {wanted.largest[0].d_sae:,} takes in memory")
    seen = _measured(resources, placement, wanted)
    if seen is None:
        return Admission(placement, estimate, measured=False)
    return Admission(place(resources, seen), seen, measured=True)


def _measured(resources: ResourcesConfig, placement: Placement, wanted: Needs) -> int | None:
    """What a trial of the largest config takes in a worker; None where Ray has none to spare."""
    import ray

    gpus = 1 if placement.gpus and resources.gpus_per_trial == "auto" else placement.gpus
    # an environment of its own means a process of its own, whose peak nothing before has raised
    alone = {"env_vars": {"RAYSAE_MEASURING": uuid.uuid4().hex}}
    options = {
        "num_cpus": placement.cpus, "num_gpus": gpus, "max_calls": 1, "max_retries": 0,
        "runtime_env": alone,
    }  # fmt: skip
    task = ray.remote(**options)(peak_memory).remote(
        wanted.largest, wanted.d_in, wanted.trained_together
    )
    try:
        return ray.get(task, timeout=LOOK_SECONDS)
    except ray.exceptions.GetTimeoutError:  # others have taken all there is
        ray.cancel(task, force=True)
        return None
    except (ray.exceptions.RayError, MemoryError, RuntimeError) as error:
        sae, training = wanted.largest
        raise UserError(
            f"a trial of the largest config (d_sae {sae.d_sae:,}, batch_size {training.batch_size:,}) "
            f"does not fit: a worker that tried ended with {str(error).strip().splitlines()[-1]}; lower "
            "d_sae, batch_size, seeds_per_trial or resources.gang"
        ) from None


def peak_memory(largest: tuple[SAEConfig, TrainingConfig], d_in: int, together: int) -> int:
    """In a worker of its own: bytes at the peak of ``together`` trainings on noise, evaluated and read
    out; on a CPU less what the worker held before."""
    device = prepare_worker()
    before = memory_used(device)
    sae, training = largest
    few = replace(training, epochs=1, tokens=BATCHES * training.batch_size, evaluations=1)
    generator = torch.Generator().manual_seed(0)
    noise = Rows(torch.randn(BATCHES * training.batch_size, d_in, generator=generator))
    members = [Member(sae, few, noise, noise, seed) for seed in range(together)]
    for member in train_members(members, device):  # each holds its memory, as it does in a trial
        if member.failure is not None:
            raise member.failure
    for member in members:
        member.trainer.final_metrics()
        member.trainer.sae()
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    return memory_used(device) - before
