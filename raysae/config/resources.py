"""The recipe's resources: what a trial gets, and which Ray it runs on."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from raysae.config.section import Positive, Section, Size

MOST_CPUS = 10_000
"""The most CPU cores of a machine: Ray starts a worker for each."""


class ResourcesConfig(Section):
    """What a trial gets, and which Ray it runs on."""

    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    """CPU cores a trial (and a worker of the atlas and of extraction) reserves; its threads."""
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """The GPU or the fraction of one that a trial (and a worker of the atlas) reserves; ``auto``: one
    where Ray has any, else none. Processes that share a GPU take turns on it, and each is held to its
    fraction of the memory; 0 trains on CPUs."""
    reading: Literal["auto", "shared", "scan", "streaming"] = "auto"
    """How trials read their rows: one shared copy in memory; one scan by Ray Data for all trials that run
    at the same time; or streamed by each trial for itself. ``auto`` shares what fits and scans what does
    not. The results are the same to the bit."""
    memory: Size | None = None
    """Bytes that rows may take in memory, shared or scanned, such as ``8 GB``; null takes 80% of Ray's
    object store."""
    copy_store: bool = False
    """Whether each node copies a store at a URI to its cache (RAYSAE_CACHE) before it reads it, for slow
    links; otherwise the rows are read where they are, in ranges of bytes."""
    max_concurrent: Positive | None = None
    """Trials at once; null takes what fits."""
    cpus: Annotated[int, Field(ge=1, le=MOST_CPUS)] | None = None
    """CPU cores of the Ray started here; null takes the machine's."""
    gang: Positive = 1
    """Trials that are trained side by side in one worker, each batch read once for all of them, for
    where reading costs more than training. Proposed together, so at most ``sweep.proposal_lag``."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60
    """Seconds between two checkpoints of a running trial or site; an interrupted one continues from the
    last."""
    hang_seconds: Annotated[float, Field(gt=0)] | None = 1800
    """A trial, site or shard that has made no step for so long is given up; null waits for ever."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a trial, a site or a shard whose worker was lost is given to another worker."""
    address: Annotated[str, Field(max_length=255)] | None = None
    """A Ray cluster to join (``auto`` finds it); null takes RAY_ADDRESS, or starts Ray here."""
    dashboard: bool = False
    """Whether the Ray started here serves its dashboard, on loopback."""
    lean: bool = True
    """Whether the Ray started here leaves out processes and steps that a sweep does not use, which saves
    seconds of each start. This changes Ray's internals; when it fails, Ray starts plainly."""

    @field_validator("gpus_per_trial")
    @classmethod
    def _one_or_a_part_of_it(cls, value: float | str) -> float | str:
        if isinstance(value, float | int) and value > 1:
            raise ValueError(
                "a trial is trained on one GPU: give 1 or a fraction of one; several GPUs train as many "
                "trials (and groups of the atlas's sites) at the same time"
            )
        return value
