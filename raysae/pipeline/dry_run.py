"""``--dry-run``: what a run would do and need, computed by the run's own code; nothing is written."""

import shutil
import time
from dataclasses import replace

import torch
from rich.table import Table

from raysae.activations import Site, Store
from raysae.cluster.placement import Placement
from raysae.cluster.reading import choose_reading
from raysae.cluster.session import ray_session
from raysae.config import Recipe
from raysae.config.search import Choices
from raysae.console.board import console, seconds
from raysae.pipeline.admission import Admission, admit
from raysae.pipeline.estimate import Needs, configs_of, existing_parent
from raysae.pipeline.plan import RunPlan
from raysae.pipeline.preflight import preflight
from raysae.sae import SAEConfig
from raysae.sweep.trials.tuning import at_once
from raysae.training import Trainer, TrainingConfig
from raysae.training.memory import free_bytes
from raysae.training.rows import IndexedRows, Rows

CALIBRATION_SECONDS = 1.0
"""Seconds that each of the two configs is trained, to measure its speed."""
CALIBRATION_ROWS = 8192
"""The most rows that they are trained on."""
TRIAL_SECONDS = 0.2
"""Seconds that a trial takes beside its training, in a worker that is already running."""
LISTED = 12
"""The most configs that are shown one by one."""


def dry_run(recipe: Recipe) -> None:
    """Print the resolved recipe and what its run would do.

    Raises UserError on everything that a run would refuse before any work.
    """
    plan, begun = preflight(recipe), time.monotonic()
    print(recipe.to_yaml())
    with ray_session(recipe.resources):
        start = time.monotonic() - begun
        wanted = plan.needs
        admitted = admit(recipe, wanted)
        placement = admitted.placement
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        rows = {
            "Trials": _trials(recipe, wanted.d_in),
            "Sites": _sites(plan.sites, plan.atlas_sites),
            "Placement": f"{placement}",
            "Memory": _memory(wanted, admitted),
            "Disk": _disk(recipe, wanted),
            "Reading": _reading(plan),
            "Time": _time(plan, placement, start),
        }
        for name, text in rows.items():
            table.add_row(name, text)
        console.print(table)
        console.print(f"Nothing was written; without --dry-run the run goes to {recipe.run_place}")


def _trials(recipe: Recipe, d_in: int) -> str:
    sweep = recipe.sweep
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


def _sites(sites: list[Site], atlas: list[Site]) -> str:
    swept = "; ".join(map(str, sites))
    return f"{swept}; then the atlas at {len(atlas)}" if atlas else f"{swept}; no atlas"


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


def _reading(plan: RunPlan) -> str:
    if plan.store is None:
        return f"extracted first, to {plan.recipe.store_folder}"
    return str(choose_reading(plan.store, plan.sites, plan.recipe.resources))


def _time(plan: RunPlan, placement: Placement, start: float) -> str:
    """The time of the run, from a short training of the smallest and the largest config.

    ``start`` is how long Ray took to start, in seconds; the workers of the trials and those of the atlas
    are assumed to take as long.
    """
    recipe, atlas = plan.recipe, len(plan.atlas_sites)
    rows, count, what = _rows(plan)
    if count is None:
        return "not known before the extraction, as source.sequences is not given"
    configs = sorted(
        (recipe.with_parameters(parameters) for parameters in configs_of(recipe, rows.d_in)),
        key=lambda pair: pair[0].d_sae,
    )
    torch.set_num_threads(max(int(placement.cpus), 1))
    device = "cuda" if placement.gpus and torch.cuda.is_available() else "cpu"
    ends = [configs[0], configs[-1]]
    speeds = [_tokens_per_second(*pair, rows, device) for pair in ends]
    each = [
        training.training_tokens(count) / speed
        for (_, training), speed in zip(ends, speeds, strict=True)
    ]
    members = recipe.sweep.seeds_per_trial * max(len(plan.sites), 1)
    workers = at_once(recipe, placement, plan.proposer.lag)
    sweep = plan.proposer.trials * (members * sum(each) / 2 + TRIAL_SECONDS) / workers + start
    atlas_seconds = atlas * max(each) / placement.workers + (start if atlas else 0)
    whole = 2 * start + sweep + atlas_seconds  # start, then stop and report
    untimed = "" if plan.store is not None else "; the extraction comes on top"
    return (
        f"about {seconds(whole)}: sweep {seconds(sweep)}, atlas at most {seconds(atlas_seconds)}, "
        f"starting and reporting the rest{untimed} ({speeds[0]:,.0f} tokens/s at "
        f"d_sae {ends[0][0].d_sae:,}, {speeds[1]:,.0f} at {ends[1][0].d_sae:,}, measured on {what})"
    )


def _rows(plan: RunPlan) -> tuple[IndexedRows, int | None, str]:
    """Rows to time a training on, the number of rows of the run (None: not known), and what they are."""
    if plan.store is not None:
        return _first_rows(plan.store, plan.sites[0])
    assert plan.extraction is not None
    source = plan.extraction.source
    fraction = 1 - source.validation - source.test
    count = None if source.sequences is None else max(int(source.sequences * fraction), 1)
    noise = torch.randn(min(count or CALIBRATION_ROWS, CALIBRATION_ROWS), plan.extraction.d_in)
    return Rows(noise), count, "noise, as the rows are not there yet"


def _first_rows(store: Store, site: Site) -> tuple[IndexedRows, int, str]:
    train = store.site(site).train
    first = train.read(0, min(len(train), CALIBRATION_ROWS))
    return Rows(first), len(train), f"{len(first):,} rows of {site}"


def _tokens_per_second(
    config: SAEConfig, training: TrainingConfig, rows: IndexedRows, device: str
) -> float:
    long = replace(training, tokens=10**12, evaluations=1)
    trainer = Trainer(config, long, rows, rows, device=device)
    started = time.perf_counter()
    for batch_BD in trainer.feed:
        trainer.take(batch_BD)
        if time.perf_counter() - started > CALIBRATION_SECONDS:
            break
    return trainer.tokens_per_second
