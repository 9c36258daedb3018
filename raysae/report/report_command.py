"""``python -m raysae.report RUN [RUN ...]``: write the pages of runs again from their records."""

import sys

from raysae.console.command_line import DONE, PARTLY, REFUSED, Parser
from raysae.console.output import say
from raysae.errors import UserError, in_one_line


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code: 1 if only some of the runs have a page now.

    A run that cannot be shown is said on stderr, and the others are shown. Raises UserError when the
    only run is not finished.
    """
    parser = Parser(
        prog="python -m raysae.report", description="Write the report of finished runs again."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or its URI")
    runs = parser.parse_args(arguments).runs
    reasons: list[Exception] = []
    for name in runs:
        try:
            say(write_page(name))
        except Exception as error:  # whatever is wrong with a run, the others are shown
            if len(runs) == 1 and isinstance(error, UserError | OSError):
                raise
            reasons.append(error)
            say(_sentence(name, error), sys.stderr)
    if not reasons:
        return DONE
    refused = len(reasons) == len(runs) and all(
        isinstance(one, UserError | OSError) for one in reasons
    )
    return REFUSED if refused else PARTLY


def write_page(name: str) -> str:
    """Write the page of the run in folder ``name``, or at this URI; returns the page's path.

    Raises UserError when it is no run, or one that is not finished.
    """
    from raysae.activations import open_store
    from raysae.records.damage import rebuilt_by
    from raysae.records.folder import read_run
    from raysae.report.page import write_report
    from raysae.storage.trouble import in_words, number_of

    run = read_run(name)
    if run.mended:
        raise UserError(f"{run.mended}; {rebuilt_by(run.recipe.run_place)}")
    needed = run.selection_file if run.recipe.sweep.enabled else run.atlas_metrics_file
    if not needed.exists():
        raise UserError(f"{name}: the run has no {needed.name} yet; finish it first")
    store = open_store(run.recipe.store_place, copy=run.recipe.resources.copy_store)
    try:
        for stage in ("sweep", "select", "atlas"):
            run.check_unaltered(stage)
        return str(write_report(run, store))
    except UserError as error:
        raise UserError(f"{error}; {rebuilt_by(run.recipe.run_place)}") from None
    except OSError as error:
        if number_of(error) is None:
            raise
        raise UserError(
            f"{in_words(error)}; the page is written into the run folder, so report a copy of it that "
            "is yours"
        ) from None


def _sentence(name: str, error: Exception) -> str:
    if isinstance(error, UserError):
        return f"error: {error}"
    return (
        f"error: {name}: its page could not be made ({in_one_line(error)}); mend the run's files, or "
        "continue it with python -m raysae.sweep --resume"
    )
