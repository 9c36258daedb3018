"""Trials of earlier runs, for a sampler to learn from (``sweep.warm_start``)."""

from raysae.config import Recipe
from raysae.errors import UserError
from raysae.records.folder import read_run
from raysae.records.tables import read_trials
from raysae.storage.remote import is_uri
from raysae.sweep.search.proposals import Known


def known_trials(recipe: Recipe) -> Known:
    """The finished trials of the runs that ``sweep.warm_start`` names.

    Each is a pair: its parameters that are in the recipe's space, and its row of ``trials.parquet``.
    Raises UserError when a folder is not a run, or has no table of trials.
    """
    known = []
    for name in recipe.sweep.warm_start:
        run = read_run(name if is_uri(name) else recipe.folder(name))
        if not run.trials_file.is_file():
            raise UserError(f"sweep.warm_start: {run.path} has no trials.parquet; finish its sweep")
        run.check_unaltered("sweep")
        for row in read_trials(run.trials_file):
            if row.done:
                parameters = {
                    key: row[key] for key in recipe.sweep.space if row.get(key) is not None
                }
                known.append((parameters, row))
    return known
