"""The sweep: Tune trials, Optuna proposals, selection. ``raysae.sweep(recipe)`` runs the main job."""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """Lets the package that ``python -m raysae.sweep`` runs serve as the function of that name."""

    def __call__(self, recipe: Any = None, **options: Any) -> Any:
        from raysae.console.quiet import quiet_environment

        quiet_environment()  # before Ray is imported
        from raysae.pipeline.run import as_recipe, run_sweep

        recipe = as_recipe(recipe)
        if recipe.models:
            from raysae.pipeline.several_models import run_models

            return run_models(recipe, **options)
        return run_sweep(recipe, **options)


sys.modules[__name__].__class__ = _CallableModule
