"""Runs of version 0.1.0: their products have a fingerprint of the whole recipe, not what made them."""

from typing import Any

from raysae.config import Recipe, parse_recipe
from raysae.errors import UserError
from raysae.identity import Made
from raysae.records import products
from raysae.records.products import EarlierVersion
from raysae.records.run_files import RunFiles
from raysae.records.tables import read_table
from raysae.sae.checkpoint import METRICS_FILE
from raysae.sites import Site
from raysae.storage.files import read_json

DONE_STAGES = ("sweep", "select", "atlas", "report")


def earlier_version(status: dict[str, Any]) -> EarlierVersion | None:
    """How to read records of version 0.1.0 in the run with this ``status.json``; None if it has none.

    Raises UserError when the recipe in it is not valid.
    """
    found = status.get("earlier")
    if found is None:
        return None
    sites = tuple(Site.of_folder(folder) for folder in found["sites"])
    recipe = parse_recipe(found["recipe"], "status.json")
    return EarlierVersion(tuple(found["fingerprints"]), recipe, found["store"], sites)


def upgrade(status: dict[str, Any], files: RunFiles, recipe: Recipe, sites: list[Site]) -> bool:
    """Add to ``status`` what made the products, if this is a run of version 0.1.0; whether it is one.

    ``recipe`` is the recipe that the run was made by.
    """
    known = status.get("fingerprint")
    if known is None or "earlier" in status or not sites:
        return False
    status["earlier"] = {
        "fingerprints": [known["value"], *known.get("accepted", [])],
        "store": known["store"],
        "recipe": recipe.dump(),
        "sites": [site.folder for site in sites],
    }
    status["shared"] = products.shared_settings(recipe, known["store"], sites)
    for stage in DONE_STAGES:
        if status["stages"][stage]["state"] == "done":
            made = _made(stage, files, recipe, known["store"], sites)
            if made is not None:
                status["stages"][stage]["made"] = made
    if "made" not in status["stages"]["sweep"]:  # the sweep had begun
        search = products.search(recipe, known["store"], sites)
        status["stages"]["sweep"]["made"] = search
    return True


def _made(
    stage: str, files: RunFiles, recipe: Recipe, store: str, sites: list[Site]
) -> Made | None:
    """What made the product of a finished stage; None when files that would show it are missing."""
    try:
        if stage == "sweep":
            return _sweep(files, recipe, store, sites)
        if stage == "select":
            return products.selection(recipe, files.trials_file)
        if stage == "report":
            return products.report(
                files.trials_file, files.selection_file, files.atlas_metrics_file
            )
        return _atlas(files, recipe, store)
    except (OSError, UserError, KeyError):  # some files were removed: the stage is run again
        return None


def _sweep(files: RunFiles, recipe: Recipe, store: str, sites: list[Site]) -> Made:
    rows = len(read_table(files.trials_file))
    listed = recipe.sweep.sampler in ("list", "grid")
    count = rows if listed else recipe.sweep.trials
    search = products.search(recipe, store, sites)
    return {**search, **products.extent(recipe, count)}


def _atlas(files: RunFiles, recipe: Recipe, store: str) -> Made:
    choice = read_json(files.selection_file)["choice"]["trial"]
    if choice is None or not recipe.atlas.enabled:
        return products.no_atlas()
    parameters = read_json(files.trial(choice) / METRICS_FILE)["parameters"]
    rows = read_table(files.atlas_metrics_file)
    trained_at = [Site.of_columns(row["layer"], row["position"]) for row in rows]
    settings = recipe.with_parameters(parameters)
    return products.trained("site", store, sorted(trained_at), [recipe.seed], *settings)
