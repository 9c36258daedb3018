"""Trials of earlier runs, for a sampler to learn from (``sweep.warm_start``)."""

from pathlib import Path

from raysae.config import Recipe
from raysae.errors import UserError
from raysae.records.folder import read_run
from raysae.records.tables import read_trials
from raysae.sweep.search.proposals import Known


def known_trials(recipe: Recipe) -> Known:
    """Parameters in the recipe's space, and figures, of the finished trials of the runs it names.

    Raises UserError when one of them is no run, or has no table of trials.
    """
    known = []
    for name in recipe.sweep.warm_start:
        run = read_run(Path(name).expanduser().absolute())
        if not run.trials_file.is_file():
            raise UserError(f"sweep.warm_start: {run.path} has no trials.parquet; finish its sweep")
        for row in read_trials(run.trials_file):
            if row.done:
                parameters = {
                    key: row[key] for key in recipe.sweep.space if row.get(key) is not None
                }
                known.append((parameters, row))
    return known
