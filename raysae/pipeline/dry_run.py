"""``--dry-run``: what a run would do and need, computed by the run's own code; nothing is written."""

import shutil
import time
from dataclasses import asdict, replace

import torch

from raysae.activations.health import health_of_store
from raysae.atlas.data import few_rows
from raysae.cluster.placement import Placement, beside_live, beside_scans, place_extraction
from raysae.cluster.reading import choose_reading
from raysae.config import Recipe
from raysae.config.search import Choices
from raysae.console.board import console, emit, seconds
from raysae.console.output import Table
from raysae.pipeline.admission import Admission, admit
from raysae.pipeline.atlas_words import config_in_words
from raysae.pipeline.carrying import carried_layers
from raysae.pipeline.estimate import Needs, configs_of, existing_parent
from raysae.pipeline.extraction_forecast import ExtractionSpeed, measure_extraction
from raysae.pipeline.floor import H100, rows_at_most, run_work
from raysae.pipeline.forecast import Basis, Forecast, forecast
from raysae.pipeline.in_model import InModelCost, in_model_cost
from raysae.pipeline.live_forecast import live_row, live_share
from raysae.pipeline.plan import RunPlan
from raysae.pipeline.preflight import preflight
from raysae.pipeline.run import trial_session
from raysae.sweep.trials.opening import at_once
from raysae.training.memory import free_bytes

LISTED = 12
"""The most configs that are shown one by one."""


def dry_run(recipe: Recipe, started: float | None = None) -> None:
    """Print what the run of a recipe would do; with several models, that of each.

    ``started`` is when the command began, in seconds since the epoch; by default it begins now.
    Raises UserError on everything that a run would refuse before any work.
    """
    started = time.monotonic() if started is None else started
    for name in recipe.models:
        console.rule(name, style="dim")
        dry_run(recipe.of_model(name), started)
    if not recipe.models:
        _dry_run(recipe, started)


def _dry_run(recipe: Recipe, started: float) -> None:
    """The dry run of a recipe of one model."""
    plan = preflight(recipe)
    with trial_session(recipe.resources):
        wanted = plan.needs
        admitted = admit(recipe, wanted)
        placement = admitted.placement
        told = forecast(plan, placement, time.monotonic() - started)
        speed = _speed(plan)
        in_model = in_model_cost(plan, speed, placement.workers)
        told = _with_model(told, in_model, plan, placement)
        extract = None
        if plan.extraction is not None and speed is not None:
            extract = speed.seconds(live_share(plan.extraction) if plan.live else 1.0)
        if told is not None:
            emit("forecast", extract=extract, **asdict(told[0]), **asdict(told[1].measured))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        rows = {
            "Trials": _trials(recipe, wanted.d_in),
            **({"In the model": in_model.text} if in_model is not None else {}),
            "Sites": _sites(plan),
            "Placement": f"{placement}",
            "Memory": _memory(wanted, admitted),
            "Disk": _disk(recipe, wanted),
            "Reading": _reading(plan, placement),
            **_layers(recipe, plan),
            **({"Live": _live(plan, placement, speed)} if _computes(plan) else {}),
            **_data(plan),
            "Time": _time(told, extract, plan),
            **_elsewhere(plan, wanted.d_in),
        }
        for name, text in rows.items():
            table.add_row(name, text)
        console.print(table)
        console.print(f"Nothing was written; without --dry-run the run goes to {recipe.run_place}")


def _with_model(
    told: tuple[Forecast, Basis] | None,
    cost: InModelCost | None,
    plan: RunPlan,
    placement: Placement,
) -> tuple[Forecast, Basis] | None:
    """The forecast with the time that trials' SAEs spend in the model."""
    if told is None or cost is None or cost.seconds is None:
        return told
    workers = at_once(plan.recipe, placement, plan.proposer.lag)
    more = cost.seconds * plan.proposer.trials / workers
    return replace(told[0], sweep=told[0].sweep + more), told[1]


def _computes(plan: RunPlan) -> bool:
    """Whether training rows are computed while training."""
    return plan.live is not None and (plan.store is None or plan.store.computes_rows)


def _live(plan: RunPlan, admitted: Placement, speed: ExtractionSpeed | None) -> str:
    """What live data cost: fewer train than are admitted, as the other workers compute rows for them."""
    trains, _ = beside_live(plan.recipe.resources)
    workers = min(trains.workers, admitted.workers)
    return live_row(plan, replace(admitted, workers=workers), speed)


def _speed(plan: RunPlan) -> ExtractionSpeed | None:
    """How fast texts are extracted, where the run does so; None where it does not, or is not known."""
    extraction = plan.live if _computes(plan) else plan.extraction
    if extraction is None:
        return None
    return measure_extraction(extraction, place_extraction(plan.recipe.resources))


def _trials(recipe: Recipe, d_in: int) -> str:
    sweep = recipe.sweep
    if not sweep.enabled:
        return (
            f"none: the atlas of a given config ({config_in_words(recipe.with_parameters({})[0])})"
        )
    members = f", {sweep.seeds_per_trial} seeds each" if sweep.seeds_per_trial > 1 else ""
    if sweep.sampler in ("list", "grid"):
        configs = configs_of(recipe, d_in)
        shown = [", ".join(f"{key} {value}" for key, value in one.items()) for one in configs]
        more = [f"and {len(shown) - LISTED} more"] if len(shown) > LISTED else []
        return "\n".join([f"{len(configs)} of a {sweep.sampler}{members}", *shown[:LISTED], *more])
    ranges = [
        f"{key} {', '.join(map(str, values.choices))}"
        if isinstance(values, Choices)
        else f"{key} {values.low:g} to {values.high:g}"
        + (" (powers of two)" if values.powers_of_two else " (log)" if values.log else "")
        for key, values in sweep.space.items()
    ]
    goals = ", ".join(f"{one.goal} {one.metric}" for one in sweep.objectives)
    limits = [f"subject to {constraint}" for constraint in sweep.constraints]
    return "\n".join([f"{sweep.trials} by {sweep.sampler}{members}: {goals}", *limits, *ranges])


def _layers(recipe: Recipe, plan: RunPlan) -> dict[str, str]:
    """A row on the runs of the layers, where each has its own."""
    asked = recipe.sweep.per_layer
    if asked is None:
        return {}
    count = len(plan.data.layers) if asked == "all" else len(asked)
    text = f"a sweep as this, with an atlas of one layer, at each of {count} layers"
    if recipe.atlas.carry != "same":
        others = carried_layers(recipe, {"": plan})
        text += (
            f"; atlases of {len(others)} more, their configs by {recipe.atlas.carry} (atlas.carry)"
        )
    return {"Layers": text}


def _sites(plan: RunPlan) -> str:
    swept, count = "; ".join(map(str, plan.sites)), len(plan.atlas_sites)
    seeds = plan.recipe.atlas.seeds_per_site
    atlas = f"the atlas at {count}" + (f", {seeds} seeds each" if seeds > 1 else "")
    if not plan.recipe.sweep.enabled:
        return atlas
    return f"{swept}; then {atlas}" if count else f"{swept}; no atlas"


def _memory(wanted: Needs, admitted: Admission) -> str:
    placement = admitted.placement
    device = "cuda" if placement.gpus and torch.cuda.is_available() else "cpu"
    free = free_bytes(device)
    all_of_them = admitted.memory * placement.workers
    there = "" if free is None else f"; {free / 2**30:.1f} GiB free here"
    return (
        f"up to {max(admitted.memory / 2**20, 1):,.0f} MiB a trial (d_sae {wanted.largest[0].d_sae:,}, "
        f"{admitted.how}), {max(all_of_them / 2**20, 1):,.0f} MiB for {placement.workers} at "
        f"once, without the rows and the libraries{there}"
    )


def _disk(recipe: Recipe, wanted: Needs) -> str:
    free = shutil.disk_usage(existing_parent(recipe.run_folder)).free
    store = f"store up to {wanted.store_bytes / 1e6:,.0f} MB, " if wanted.store_bytes else ""
    return f"{store}SAEs up to {wanted.run_bytes / 1e6:,.0f} MB; {free / 1e9:,.1f} GB free"


def _reading(plan: RunPlan, placement: Placement) -> str:
    """How the trials will read. Raises UserError when no CPU is left for the way that is asked for."""
    if _computes(plan):
        return f"live: computed from the texts in {plan.recipe.store_folder} while training"
    if plan.store is None:
        return f"extracted first, to {str(plan.recipe.store_place).partition('?')[0]}"
    if not plan.recipe.sweep.enabled:
        return "each site by the worker that trains it, once"
    resources, together = plan.recipe.resources, at_once(plan.recipe, placement, plan.proposer.lag)
    reading = choose_reading(plan.store, plan.sites, resources, together)
    if reading.how == "scan":
        together = min(together, beside_scans(resources).workers)
        return f"{reading}; {together} trials at a time share a scan"
    return str(reading)


def _data(plan: RunPlan) -> dict[str, str]:
    """A row on the health of the rows at the sites to train at, where the store exists."""
    if plan.store is None:
        return {}
    found = health_of_store(plan.store, sorted({*plan.sites, *plan.atlas_sites}))
    for one in found.sites:
        emit("health", **one.record())
    few = None
    if not plan.recipe.sweep.enabled:
        few = few_rows(plan.store, plan.recipe.with_parameters({})[0], plan.atlas_sites)
    return {"Data": "\n".join([*found.notes, found.how, *([few] if few else [])])}


def _elsewhere(plan: RunPlan, d_in: int) -> dict[str, str]:
    """A row on the least time of the training on a GPU that need not be here."""
    where = plan.store or plan.extraction
    rows = rows_at_most(where, plan.sites[0]) if where is not None else None
    if rows is None:
        return {}
    work = run_work(plan.recipe, d_in, rows, len(plan.atlas_sites))
    text = (
        f"its training is {work.flop / 1e15:,.3g} PFLOP; arithmetic and memory alone take one "
        f"{H100.name} at least {seconds(work.seconds)} (not measured here)"
    )
    return {"Elsewhere": text}


def _time(told: tuple[Forecast, Basis] | None, extract: float | None, plan: RunPlan) -> str:
    """The forecast in words; ``extract`` are the seconds of the extraction, where there is one."""
    if told is None and plan.extraction is not None and plan.extraction.source.sequences is None:
        return "not known before the extraction, as source.sequences is not given"
    if told is None:
        return "not known, as no worker was free to measure it"
    expected, basis = told
    passes = "; without the forward passes of live data" if _computes(plan) else ""
    extraction = ""
    if plan.extraction is not None:
        extraction = (
            f"extract {seconds(extract)}, " if extract is not None else "extract not known, "
        )
    sweep = f"sweep {seconds(expected.sweep)}, " if plan.recipe.sweep.enabled else ""
    sweep += f"controls {seconds(expected.controls)}, " if expected.controls else ""
    speeds = " and ".join(
        f"{cost.tokens_per_second:,.0f} at d_sae {d_sae:,}"
        for d_sae, cost in zip(basis.d_saes, basis.measured.costs, strict=True)
    )
    return (
        f"about {seconds(expected.total + (extract or 0.0))}: start {seconds(expected.start)}, "
        f"{extraction}{sweep}atlas {seconds(expected.atlas)}, choice, report "
        f"and end {seconds(expected.report)} (measured here: {speeds} tokens/s in each worker on "
        f"{basis.rows}; a worker's start {seconds(basis.measured.worker_start)}{passes})"
    )
