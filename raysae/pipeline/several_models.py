"""Several models or layers in one recipe: a run for each, and one table that compares them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysae.config import Recipe, parse_recipe
from raysae.console.board import console
from raysae.console.output import Table
from raysae.errors import UserError
from raysae.metrics import MODELS, registered, shown
from raysae.pipeline.atlas_words import config_in_words
from raysae.pipeline.begun import Begun, told_if_begun
from raysae.pipeline.carrying import carried_layers, carried_recipes
from raysae.pipeline.plan import RunPlan
from raysae.pipeline.preflight import preflight
from raysae.pipeline.result import SweepResult
from raysae.pipeline.run import run_plan, trial_session
from raysae.records.run_files import RunFiles
from raysae.storage.files import refuse_links_outside
from raysae.storage.trouble import reason_in_words

FIGURES = ("explained_variance", "l0", "dead_fraction")
"""The metrics that the last screen compares."""


@dataclass
class ModelsResult:
    """The results of the runs of a recipe with ``models``, or with ``sweep.per_layer``."""

    folder: Path
    kind: str = "model"
    """What the runs are of: ``model`` or ``layer``."""
    results: dict[str, SweepResult] = field(default_factory=dict)
    """The result of each, by its name."""
    refused: dict[str, str] = field(default_factory=dict)
    """Those that could not be run, and why."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The rows of the table: the sweet spot and the atlas of each."""
    broken: str = ""
    """Why the models could not be compared; empty when they could."""

    @property
    def table(self) -> Path:
        """The table: ``models.parquet`` or ``layers.parquet``."""
        return self.folder / f"{self.kind}s.parquet"

    @property
    def page(self) -> Path:
        """The page that compares the models."""
        return self.folder / "report" / "index.html"

    @property
    def failures(self) -> list[str]:
        """What failed, a line each that begins with the model's name; empty when all is done."""
        refused = [f"{name}: {reason}" for name, reason in self.refused.items()]
        broken = [f"comparison: {self.broken}"] if self.broken else []
        return [
            *refused,
            *(f"{name}: {line}" for name, one in self.results.items() for line in one.failures),
            *broken,
        ]


def run_models(recipe: Recipe, *, force: bool = False) -> ModelsResult:
    """Run the main job for each of the recipe's models, or layers, on one Ray, and compare the outcomes.

    Each has a run of its own in the recipe's folder. A run that fails does not affect the others.
    ``force`` is as for ``run_sweep``.
    Raises UserError, before any work, when one of them cannot be run.
    """
    refuse_links_outside(recipe.run_folder, "this run")
    plans = plans_of_models(recipe) if recipe.models else plans_of_layers(recipe)
    carried = [] if recipe.models else carried_layers(recipe, plans)
    files = RunFiles.of(recipe)
    files.write_text(files.path / "config.yaml", recipe.anchored().to_yaml())
    with told_if_begun(recipe) as begun:
        kind = "model" if recipe.models else "layer"
        result = ModelsResult(files.path, kind)
        with trial_session(recipe.resources):
            _run_each(plans.items(), result, force, begun)
            _run_each(carried_recipes(recipe, carried, dict(result.results)), result, force, begun)
        _compare(recipe, files, result)
    return result


def plans_of_models(recipe: Recipe) -> dict[str, RunPlan | Recipe]:
    """The plan of each model's run. Raises UserError when one of them cannot be run."""
    plans: dict[str, RunPlan | Recipe] = {}
    for name in recipe.models:
        try:
            plans[name] = preflight(recipe.of_model(name))
        except UserError as error:
            raise UserError(f"models.{name}: {error}") from None
    return plans


def plans_of_layers(recipe: Recipe) -> dict[str, RunPlan | Recipe]:
    """The plan of each layer's run; or its recipe, if another's run extracts the store that it needs.

    Raises UserError when one of them cannot be run.
    """
    asked = recipe.sweep.per_layer
    if asked == "all" or asked is None:
        data = recipe.dump()
        data["sweep"]["per_layer"] = None
        asked = tuple(preflight(parse_recipe(data)).data.layers)
    plans: dict[str, RunPlan | Recipe] = {}
    extracted = False
    for layer in dict.fromkeys(asked):
        own = recipe.of_layer(layer)
        plan = own if extracted else preflight(own)
        extracted = extracted or (isinstance(plan, RunPlan) and plan.store is None)
        plans[own.name] = plan
    return plans


def _run_each(
    plans: Iterable[tuple[str, RunPlan | Recipe | UserError]],
    result: ModelsResult,
    force: bool,
    begun: Begun,
) -> None:
    """Run one after the other; one that fails does not affect the others."""
    for name, plan in plans:
        console.rule(name, style="dim")
        begun.mark()
        try:
            if isinstance(plan, UserError):
                raise plan
            ready = preflight(plan) if isinstance(plan, Recipe) else plan
            result.results[name] = run_plan(ready, force=force)
        except Exception as error:  # one's failure costs no other
            told = str(error) if isinstance(error, UserError) else reason_in_words(error)
            result.refused[name] = told
            console.print(f"{name}: {result.refused[name]}", style="red")


def _compare(recipe: Recipe, files: RunFiles, result: ModelsResult) -> None:
    """Write the table and the page of all that have a result."""
    result.rows = [_row(result.kind, name, one) for name, one in result.results.items()]
    if result.rows:
        from raysae.report.comparison import write_comparison

        files.write_table(result.table, result.rows)
        runs = {name: one.run for name, one in result.results.items()}
        write_comparison(result.page, recipe.name, result.rows, runs, result.refused, result.kind)
    files.send()


def print_comparison(result: ModelsResult) -> None:
    """Print a table of all models or layers, what failed, and where the results are."""
    title = f"{result.kind}s".capitalize()
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    figures = [registered()[key].title for key in FIGURES]
    for name in (result.kind, "d_in", "sweet spot", *figures, "atlas EV", "lowest", "sites"):
        table.add_column(name, justify="left" if name in (result.kind, "sweet spot") else "right")
    for row in result.rows:
        known = registered()
        cells = [known[key].text(row.get(key)) for key in FIGURES]
        cells += [known[FIGURES[0]].text(row.get(f"atlas.{key}")) for key in ("mean", "lowest")]
        sites = str(row["atlas.sites"])
        table.add_row(row[result.kind], str(row["d_in"]), row["config"] or "none", *cells, sites)
    console.print(table)
    for line in result.failures:
        console.print(f"  {line}", style="red")
    console.print(f"Table    {result.table}")
    if result.rows and not result.broken:
        console.print(f"Page     {result.page}")
    for name, one in result.results.items():
        console.print(f"Report   {name}: {one.run.report_page}")


def _row(kind: str, name: str, result: SweepResult) -> dict[str, Any]:
    number = result.selection["choice"]["trial"]
    chosen = next((row for row in result.trials if row.trial == number), None)
    atlas = [row.explained_variance for row in result.atlas if row.measured]
    columns = {} if chosen is None else chosen.columns
    return {
        kind: name,
        "d_in": result.d_in,
        "trials": len(result.trials),
        "trial": number,
        "config": _config(result) if chosen is None else chosen.config,
        "reason": result.selection["choice"]["reason"],
        **{metric.name: columns.get(metric.name) for metric in shown(MODELS)},
        "atlas.sites": len(atlas),
        "atlas.mean": sum(atlas) / len(atlas) if atlas else None,
        "atlas.lowest": min(atlas, default=None),
        "atlas.highest": max(atlas, default=None),
        "folder": str(result.folder),
    }


def _config(result: SweepResult) -> str:
    """What a run without a search was given, in words; empty where a search chose nothing."""
    recipe = result.run.recipe
    return "" if recipe.sweep.enabled else config_in_words(recipe.sae)
