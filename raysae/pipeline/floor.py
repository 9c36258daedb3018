"""The least time that a run's training takes on a GPU that is not here: arithmetic and memory alone.

A dense step on B rows takes 10 d_in d_sae B floating-point operations (encode and decode 2 each, dz and
dW_dec 4, dW_enc 2), and Adam moves 32 bytes a parameter. A real run takes longer, small SAEs much
longer, as starting kernels is not counted, nor are extraction, evaluations and commits.
"""

import math
from dataclasses import dataclass
from statistics import fmean

from raysae.activations import Store
from raysae.config import Recipe
from raysae.extraction.plan import ExtractionPlan
from raysae.pipeline.estimate import configs_of, training_rows
from raysae.sae import SAEConfig
from raysae.sites import ALL, Site
from raysae.training import TrainingConfig

ADAM_BYTES = 32


@dataclass(frozen=True)
class Device:
    """A GPU's rates as its maker gives them."""

    name: str
    flops: dict[str, float]
    """Floating-point operations a second, without sparsity, by ``training.precision``."""
    bandwidth: float
    """Bytes a second."""


H100 = Device("H100", {"float32": 67e12, "tf32": 494e12, "bfloat16": 989e12}, 3.35e12)


@dataclass(frozen=True)
class Work:
    """What trainings take."""

    flop: float
    seconds: float
    """The least time on one device."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flop + other.flop, self.seconds + other.seconds)

    def __mul__(self, times: float) -> "Work":
        return Work(self.flop * times, self.seconds * times)


def training_work(
    d_in: int, sae: SAEConfig, training: TrainingConfig, rows: int, device: Device = H100
) -> Work:
    """What one training over ``rows`` training rows takes."""
    steps, tokens = training.steps(rows), training.training_tokens(rows)
    flop = 10.0 * d_in * sae.d_sae * tokens
    moved = steps * ADAM_BYTES * 2.0 * d_in * sae.d_sae
    rate = device.flops[training.precision]
    return Work(flop, max(flop / rate, moved / device.bandwidth))


def run_work(recipe: Recipe, d_in: int, rows: int, atlas_sites: int) -> Work:
    """What the trainings of a run take, with ``rows`` training rows a site.

    The choice is not known before: the atlas counts as the mean of the middle and the largest config.
    """
    configs = [recipe.with_parameters(one) for one in configs_of(recipe, d_in)]
    works = [training_work(d_in, *config, rows) for config in configs]
    mean = Work(fmean(work.flop for work in works), fmean(work.seconds for work in works))
    largest = max(works, key=lambda work: work.flop)
    listed = recipe.sweep.sampler in ("list", "grid")
    trials = min(len(configs), recipe.sweep.trials) if listed else recipe.sweep.trials
    members = recipe.sweep.seeds_per_trial * max(len(recipe.sweep.sites), 1)
    return mean * (trials * members) + (mean + largest) * (atlas_sites / 2)


def rows_at_most(where: Store | ExtractionPlan, site: Site) -> int | None:
    """Training rows of a site, at most; None when nothing limits them before the extraction."""
    found = training_rows(where, site)
    if found is not None or isinstance(where, Store):
        return found
    source = where.source
    limits = [source.max_rows, source.max_tokens if site.position == ALL else None]
    known = [limit for limit in limits if limit is not None]
    held_out = source.validation + source.test
    return math.ceil(min(known) * (1 - held_out)) if known else None
