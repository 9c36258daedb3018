"""What a run will need: its largest config, memory and disk, as upper estimates."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raysae.activations import Store
from raysae.activations.schema import ITEM_BYTES
from raysae.config import Recipe
from raysae.errors import UserError
from raysae.extraction.plan import HEAD_SHARE, ExtractionPlan
from raysae.sae import SAEConfig
from raysae.sites import ALL, Site
from raysae.sweep.search.space import MEMORY, Parameters, Space
from raysae.training import TrainingConfig
from raysae.training.memory import FLOAT, largest_d_sae, peak_bytes, training_bytes

CHECKPOINT_COPIES = 4
"""Sizes of the weights that a checkpoint takes: weights, Adam's two moments, the state before."""


@dataclass(frozen=True)
class Needs:
    """The memory of the largest trial and the disk space of the whole run, in bytes."""

    d_in: int
    largest: tuple[SAEConfig, TrainingConfig]
    trained_together: int
    """SAEs that a worker trains at the same time: the trials of a gang, at every site with every seed."""
    memory_per_trial: int
    """Bytes that a worker holds for them."""
    run_bytes: int
    """Bytes that the run writes to its folder."""
    store_bytes: int
    """Bytes of a store that has to be extracted; 0 when the number of texts is not known."""
    row_bytes: int = 0
    """Bytes of the rows of the sweep's sites, which a process holds once on its GPU where they fit."""
    seeds: int = 1
    """SAEs of one site whose dictionaries are compared at the end."""
    model_bytes: int = 0
    """Bytes of the model that a worker holds to measure its trials' SAEs in it; 0 where none does."""


def configs_of(recipe: Recipe, d_in: int | None = None) -> list[Parameters]:
    """Every valid config of a list or grid, or those at the ends of the ranges of a search.

    With ``d_in``, configs that take more memory than the recipe allows are left out.
    Raises UserError when no config is valid.
    """
    if recipe.sweep.sampler == "list":
        return list(recipe.sweep.configs)
    space = Space(recipe, d_in)
    return space.grid() if recipe.sweep.sampler == "grid" else space.valid_corners()


def needs(
    recipe: Recipe, where: Store | ExtractionPlan, atlas_sites: int, sites: Sequence[Site] = ()
) -> Needs:
    """What the run of ``recipe`` needs, on a store or on the store that an extraction plan will make.

    ``atlas_sites`` is the number of sites of the atlas; ``sites`` are those of the sweep.
    """
    listed = recipe.sweep.sampler in ("list", "grid")
    configs = [
        recipe.with_parameters(parameters)
        for parameters in configs_of(recipe, where.d_in if listed else None)
    ]
    largest = max(configs, key=lambda pair: training_bytes(where.d_in, pair[0].d_sae, pair[1]))
    if not listed:  # the largest config may lie inside the ranges
        largest = _within(recipe, where.d_in, *largest)
    seeds, trials = recipe.atlas.seeds_per_site, recipe.sweep.trials
    members = recipe.sweep.seeds_per_trial * max(len(recipe.sweep.sites), 1)
    together = max(members * recipe.resources.gang, seeds if atlas_sites else 1)
    if not recipe.sweep.enabled:
        trials, together = 0, seeds
    compared = max(recipe.sweep.seeds_per_trial * (trials > 0), seeds * (atlas_sites > 0))
    sae_bytes = 2 * where.d_in * largest[0].d_sae * FLOAT
    written = trials * members + CHECKPOINT_COPIES * together + 1 + atlas_sites * seeds
    return Needs(
        where.d_in, largest, together,
        peak_bytes(where.d_in, largest[0].d_sae, largest[1], together, compared),
        written * sae_bytes, 0 if isinstance(where, Store) else _store_bytes(where),
        _row_bytes(where, sites), compared,
    )  # fmt: skip


def _row_bytes(where: Store | ExtractionPlan, sites: Sequence[Site]) -> int:
    """Bytes of the training and validation rows of these sites, as far as they are known."""
    if isinstance(where, Store):
        rows = [where.entry(site).rows for site in sites]
        return sum(one.train + one.validation for one in rows) * where.row_bytes
    counts = [training_rows(where, site) or 0 for site in sites]
    train_share = max(1 - where.source.validation - where.source.test, 0.01)
    held_out = 1 + where.source.validation / train_share
    return int(sum(counts) * held_out) * where.d_in * ITEM_BYTES.get(where.source.dtype, 4)


def training_rows(where: Store | ExtractionPlan, site: Site) -> int | None:
    """Training rows of a site; None when they are not known before the extraction."""
    if isinstance(where, Store):
        return where.entry(site).rows.train
    source = where.source
    if source.sequences is None:
        return None
    tokens = source.context_length if site.position == ALL else 1  # at most
    return max(int(source.sequences * (1 - source.validation - source.test)) * tokens, 1)


def _store_bytes(plan: ExtractionPlan) -> int:
    """Bytes that the extraction writes; 0 when the number of texts is not known."""
    source, whole = plan.source, whole_store_bytes(plan)
    if not source.live or source.keep == "yes":
        return whole
    held_out = source.validation + source.test
    return int(whole * (held_out + (1 - held_out) * HEAD_SHARE))


def whole_store_bytes(plan: ExtractionPlan) -> int:
    """Bytes of a store with all its rows; 0 when the number of texts is not known."""
    source = plan.source
    if source.sequences is None:
        return 0
    rows = source.sequences * plan.sites_at_a_position * sum(
        source.context_length if position == ALL else 1 for position in plan.positions
    )  # fmt: skip
    return rows * plan.d_in * ITEM_BYTES.get(source.dtype, 4)


def _within(
    recipe: Recipe, d_in: int, sae: SAEConfig, training: TrainingConfig
) -> tuple[SAEConfig, TrainingConfig]:
    """The config, made as small as the search's constraint on memory demands."""
    bounds = [c.at_most for c in recipe.sweep.constraints if c.metric == MEMORY and c.at_most]
    d_sae = min((largest_d_sae(d_in, bound, training) for bound in bounds), default=sae.d_sae)
    if not 1 <= d_sae < sae.d_sae:
        return sae, training
    sparsity = {"k": min(sae.k, d_sae)} if hasattr(sae, "k") else {}
    return replace(sae, d_sae=d_sae, **sparsity), training


def check_disk(recipe: Recipe, wanted: Needs) -> None:
    """Raise UserError when the disks have too little space for what the run writes."""
    asked: dict[int, tuple[Path, int]] = {}
    stored = 0 if recipe.store_uri else wanted.store_bytes  # to a URI it goes shard by shard
    left = max(wanted.run_bytes - bytes_in(recipe.run_folder), 0)
    folders = (recipe.run_folder, left), (recipe.store_folder, stored)
    for folder, size in folders:
        there = existing_parent(folder)
        device = there.stat().st_dev
        asked[device] = there, asked.get(device, (there, 0))[1] + size
    for folder, size in asked.values():
        free = shutil.disk_usage(folder).free
        if size > free:
            raise UserError(
                f"{folder}: the run writes up to {size / 1e9:.2f} GB there (SAEs of d_sae up to "
                f"{wanted.largest[0].d_sae:,}), and {free / 1e9:.2f} GB are free; free some space, name "
                "other folders (runs_dir=, store=), or search less"
            )


def bytes_in(folder: Path) -> int:
    """Bytes of the weights that a run has written already; 0 for a folder that does not exist."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors") if file.is_file())


def existing_parent(folder: Path) -> Path:
    """``folder``, or its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder
