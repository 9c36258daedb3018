"""How long a run will take, stage by stage, from measurements on this machine."""

import math
from dataclasses import asdict, dataclass
from statistics import fmean

import torch
from torch import Tensor

from raysae.activations import Site, Store
from raysae.activations.live import read_head
from raysae.cluster.placement import Placement
from raysae.config import Recipe
from raysae.config.search import Choices, Range
from raysae.pipeline.calibration import Calibration, Cost, calibrate
from raysae.pipeline.estimate import configs_of, training_rows
from raysae.pipeline.plan import RunPlan
from raysae.sweep.controls.fits import MOST_TOKENS, SEEDS
from raysae.sweep.trials.opening import at_once
from raysae.training.rows import Rows, Splits

CALIBRATION_ROWS = 8192
"""The most rows of a split that configs are trained or evaluated on."""


@dataclass(frozen=True)
class Overheads:
    """What a run takes beside its trainings, in times of the start of a worker on the same machine.

    ``scripts/forecast.py`` measures them: it prints the value with which each stage's forecast would
    have been right.
    """

    sweep: float = 1.0
    """Tune's start, with workers that have imported the trials' modules."""
    trial: float = 0.03
    """A trial: Tune's and the driver's part, records included."""
    evaluation: float = 0.004
    """A report of a trial, in the driver."""
    atlas: float = 0.1
    """The pool of the atlas, beside the start of its workers."""
    site: float = 0.005
    """A site: opening its rows and the driver's part."""
    report: float = 0.12
    """Choice and report."""
    end: float = 0.06
    """Stopping Ray, and the last records."""


OVERHEADS = Overheads()


@dataclass(frozen=True)
class Forecast:
    """Seconds of each part of a run, without the extraction."""

    start: float
    """From the command to the first stage."""
    sweep: float
    controls: float
    """What the choice is compared with."""
    atlas: float
    report: float
    """Choice, report and the end."""

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Basis:
    """What a forecast follows from: the ends of the configs, and what was measured of them."""

    d_saes: tuple[int, int]
    """The smallest and the largest ``d_sae``."""
    measured: Calibration
    rows: str
    """The rows of the measurement, in words."""


def forecast(plan: RunPlan, placement: Placement, start: float) -> tuple[Forecast, Basis] | None:
    """How long the run of ``plan`` takes, ``start`` being the seconds until its first stage.

    None when the number of rows is not known before the extraction, or no worker is free to measure.
    """
    where = plan.store or plan.extraction
    assert where is not None
    count = training_rows(where, plan.sites[0])
    if count is None:
        return None
    recipe, workers = plan.recipe, at_once(plan.recipe, placement, plan.proposer.lag)
    train, validation, scale, what = _rows(plan, count)
    configs = sorted(
        (recipe.with_parameters(one) for one in configs_of(recipe, train.shape[1])),
        key=lambda pair: pair[0].d_sae,
    )
    ends = (configs[0], configs[-1])
    measured = calibrate(ends, train, validation, scale, placement, workers)
    if measured is None:
        return None
    d_saes = ends[0][0].d_sae, ends[1][0].d_sae
    middle = _mean_d_sae(recipe, [sae.d_sae for sae, _ in configs])
    training = recipe.training
    tokens, evaluations = training.training_tokens(count), training.evaluations
    sweep = _sweep(plan, measured, _cost_at(middle, d_saes, measured), tokens, workers)
    upper = _cost_at((middle + d_saes[1]) / 2, d_saes, measured)
    controls = _controls(plan, measured, upper, tokens, placement.workers)
    chosen = upper.seconds(tokens, evaluations) * plan.recipe.atlas.seeds_per_site
    atlas = _atlas(len(plan.atlas_sites), measured, chosen, placement.workers)
    unit = measured.worker_start
    report = (OVERHEADS.report + OVERHEADS.end) * unit
    return Forecast(start, sweep, controls, atlas, report), Basis(d_saes, measured, what)


def _sweep(plan: RunPlan, measured: Calibration, cost: Cost, tokens: int, workers: int) -> float:
    recipe, unit = plan.recipe, measured.worker_start
    if not recipe.sweep.enabled:
        return 0.0
    sweep, evaluations = recipe.sweep, recipe.training.evaluations
    members = sweep.seeds_per_trial * max(len(plan.sites), 1)
    each = members * cost.seconds(tokens, evaluations)
    each = min(each, sweep.max_seconds_per_trial or math.inf)
    trials = plan.proposer.trials
    if sweep.max_tokens is not None:
        trials = min(trials, math.ceil(sweep.max_tokens / (members * tokens)))
    beside = (OVERHEADS.trial + OVERHEADS.evaluation * evaluations) * unit
    trained = trials * (each / workers + beside)
    trained = min(trained, (sweep.max_seconds or math.inf) + each)
    return OVERHEADS.sweep * unit + measured.warm_up + trained


def _controls(plan: RunPlan, measured: Calibration, cost: Cost, tokens: int, workers: int) -> float:
    """The trainings of the controls, site by site; without the texts that a shuffled model reads, and
    without PCA, which takes little. Each is evaluated twice, once for the error of its figure."""
    names, sweep = plan.recipe.sweep.wanted_controls, plan.recipe.sweep
    if plan.store.computes_rows if plan.store is not None else plan.live is not None:
        names = tuple(name for name in names if name == "shuffled_model")
    seeds = min(SEEDS, sweep.seeds_per_trial)
    trainings = sum({"pca": 0, "frozen_decoder": 1}.get(name, seeds) for name in names)
    if not names:
        return 0.0
    each = trainings * cost.seconds(min(tokens, MOST_TOKENS), 2)
    beside = (1 + OVERHEADS.atlas) * measured.worker_start
    return beside + measured.warm_up + math.ceil(len(plan.sites) / workers) * each


def _atlas(sites: int, measured: Calibration, each: float, workers: int) -> float:
    if not sites:
        return 0.0
    unit, workers = measured.worker_start, min(workers, sites)
    trained = math.ceil(sites / workers) * each
    beside = (1 + OVERHEADS.atlas + sites * OVERHEADS.site) * unit
    return beside + measured.warm_up + trained


def _cost_at(d_sae: float, ends: tuple[int, int], measured: Calibration) -> Cost:
    smallest, largest = ends
    place = (d_sae - smallest) / (largest - smallest) if largest > smallest else 0.0
    return measured.costs[0].between(measured.costs[1], min(max(place, 0.0), 1.0))


def _mean_d_sae(recipe: Recipe, listed: list[int]) -> float:
    """The mean ``d_sae`` of the configs that the search proposes."""
    values = recipe.sweep.space.get("sae.d_sae")
    if recipe.sweep.sampler in ("list", "grid") or values is None:
        return fmean(listed)
    if isinstance(values, Range) and not values.powers_of_two:
        low, high = values.low, values.high
        return (
            (high - low) / math.log(high / low) if values.log and high > low else (low + high) / 2
        )
    numbers = values.choices if isinstance(values, Choices) else values.powers
    return fmean(float(number) for number in numbers)


def _rows(plan: RunPlan, count: int) -> tuple[Tensor, Tensor, float, str]:
    """Rows to train and to evaluate on, how much longer a whole evaluation is, and what they are."""
    if plan.store is not None:
        return _stored_rows(plan.store, plan)
    assert plan.extraction is not None
    source, d_in = plan.extraction.source, plan.extraction.d_in
    held_out = max(int(count * source.validation / (1 - source.validation - source.test)), 1)
    train = torch.randn(min(count, CALIBRATION_ROWS), d_in)
    validation = torch.randn(min(held_out, CALIBRATION_ROWS), d_in)
    scale = held_out / len(validation)
    return train, validation, scale, "noise, as the rows are not there yet"


def _of_live(store: Store, site: Site) -> Splits:
    """What is on disk of a live store's site: the head, and the validation rows."""
    return Splits(Rows([read_head(store, site)]), Rows([store.validation(site)]))


def _stored_rows(store: Store, plan: RunPlan) -> tuple[Tensor, Tensor, float, str]:
    site = plan.sites[0]
    rows = _of_live(store, site) if store.computes_rows else store.site(site)
    train = rows.train.read(0, min(len(rows.train), CALIBRATION_ROWS)).float()
    validation = rows.validation.read(0, min(len(rows.validation), CALIBRATION_ROWS)).float()
    scale = len(rows.validation) / len(validation)
    return train, validation, scale, f"{len(train):,} rows of {site}"
