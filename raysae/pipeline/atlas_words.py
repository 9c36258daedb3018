"""What is said before an atlas is trained: its config, its sites, and rows that are too few for it."""

from raysae.activations import Site
from raysae.atlas.data import few_rows
from raysae.console.board import console
from raysae.pipeline.attempt import Attempt
from raysae.records.folder import RunFolder
from raysae.records.run_files import ASIDE
from raysae.sae import SAEConfig
from raysae.sae.config import CONFIGS


def tell_atlas(attempt: Attempt, sae: SAEConfig, sites: list[Site]) -> None:
    """Print which config is trained at how many sites, and at which of them the rows are too few."""
    chosen = attempt.result.selection["choice"]["trial"]
    what = f"trial {chosen}'s config" if chosen is not None else config_in_words(sae)
    seeds = attempt.recipe.atlas.seeds_per_site
    each = f", each with {seeds} seeds" if seeds > 1 else ""
    console.print(f"Training {what} at {len(sites)} site{'s' * (len(sites) != 1)}{each}")
    warning = few_rows(attempt.store, sae, sites)
    if warning is not None:
        console.print(warning, style="yellow")


def tell_aside(run: RunFolder, count: int) -> None:
    """Print that so many sites are no longer of the atlas, and where they are."""
    console.print(
        f"{count} site{'s' * (count > 1)} of other settings set aside, in {run.path / 'atlas' / ASIDE}; "
        "taken back when wanted again"
    )


def config_in_words(sae: SAEConfig) -> str:
    """Such as ``topk, d_sae 512, k 32``."""
    key = CONFIGS[sae.variant].sparsity_key
    return f"{sae.variant}, d_sae {sae.d_sae:,}, {key} {getattr(sae, key):g}"
