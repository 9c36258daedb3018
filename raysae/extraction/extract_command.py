"""``python -m raysae.extract``: extract the store of a recipe's source."""

from typing import TYPE_CHECKING

from raysae.console.board import console
from raysae.console.command_line import DONE, recipe_parser, split_config
from raysae.console.shell import look_at_store

if TYPE_CHECKING:
    from raysae.activations.store import Store
    from raysae.config import Recipe
    from raysae.extraction.plan import ExtractionPlan


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit code. Raises UserError on unusable input."""
    parser = recipe_parser(
        "python -m raysae.extract",
        "Read a transformer's activations over a data set into a store. Only the recipe's name, "
        "store, seed, source and resources count. After an interruption, the same command continues.",
    )
    parser.add_argument("--address", help="a Ray cluster to join; the same as resources.address=")
    args = parser.parse_intermixed_args(arguments)
    config, overrides = split_config(args)
    if args.address:
        overrides = [*overrides, f"resources.address={args.address}"]
    from raysae.config import load_recipe

    recipe = load_recipe(config, overrides)
    if args.print_config:
        print(recipe.to_yaml(), end="")
        return DONE
    _print_result(run_extraction(recipe))
    return DONE


def run_extraction(recipe: "Recipe") -> "Store":
    """Extract a recipe's store, or open it if it exists. Raises UserError on unusable input."""
    from raysae.cluster.session import check_address, ray_session
    from raysae.errors import UserError
    from raysae.extraction.plan import existing_store, plan_extraction
    from raysae.extraction.sequences import peek
    from raysae.extraction.test_pass import test_pass

    if recipe.source is None:
        raise UserError("source is null: there is nothing to extract; give the recipe a source")
    check_address(recipe.resources)
    plan = plan_extraction(recipe)
    store = existing_store(plan)
    if store is not None:
        console.print(f"Store: {store.place} is there already")
        return store
    test_pass(plan)
    peek(plan)
    with ray_session(recipe.resources):
        return extract_with(plan, recipe)


def extract_with(plan: "ExtractionPlan", recipe: "Recipe") -> "Store":
    """Print what a checked extraction does, and run it on the connected Ray. Returns the store.

    Raises UserError as ``extract`` does.
    """
    from raysae.cluster.placement import place_extraction
    from raysae.extraction.run import extract, start_importing

    source, placement = plan.source, place_extraction(recipe.resources)
    several = f" x {len(plan.hookpoints)} hookpoints" if len(plan.hookpoints) > 1 else ""
    console.print(
        f"Extracting {', '.join(source.hookpoints)} of {source.model} ({plan.architecture}) over "
        f"{source.dataset}: {len(plan.layers)} layers x {len(plan.positions)} positions{several}; "
        f"workers: {placement}"
    )
    start_importing(plan, placement)
    return extract(plan, placement, recipe.resources)


def _print_result(store: "Store") -> None:
    size = sum(shard.bytes for entry in store.manifest.sites for shard in entry.shards)
    rows = sum(shard.rows.total for entry in store.manifest.sites for shard in entry.shards)
    large = sum(entry.too_large for entry in store.manifest.sites)
    left_out = f"  {large:,} rows left out, as their norm was too large\n" if large else ""
    console.print(
        f"Store: {store.place}\n"
        f"  {len(store.sites)} sites, {rows:,} rows of {store.d_in} {store.manifest.dtype}, "
        f"{size / 1e9:.3f} GB\n{left_out}"
        f"{look_at_store(store.uri or store.path, store.computes_rows)}"
    )
