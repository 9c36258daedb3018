"""The sweep: Tune trials, Optuna proposals, selection. ``raysae.sweep(recipe)`` runs the main job."""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """Makes this package callable: ``raysae.sweep(recipe)`` is a function, too."""

    def __call__(self, recipe: Any = None, **options: Any) -> Any:
        """Run the main job; a ``SweepResult``, or a ``ModelsResult`` for a recipe of several models
        or layers.

        See ``raysae.pipeline.run.run_sweep`` for the arguments and errors.
        """
        from raysae.console.quiet import quiet_environment

        quiet_environment()  # before Ray is imported
        from raysae.pipeline.run import as_recipe, run_sweep

        recipe = as_recipe(recipe)
        if recipe.several:
            from raysae.pipeline.several_models import run_models

            return run_models(recipe, **options)
        return run_sweep(recipe, **options)


sys.modules[__name__].__class__ = _CallableModule
