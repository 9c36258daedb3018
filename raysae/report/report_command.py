"""``python -m raysae.report RUN [RUN ...]``: write the pages of runs again from their records."""

import argparse
from typing import TYPE_CHECKING

from raysae.console.command_line import DONE

if TYPE_CHECKING:
    from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code.

    Raises UserError for a run that is not finished; UnfinishedError when other pages were written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m raysae.report", description="Write the report of finished runs again."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or its URI")
    args = parser.parse_args(arguments)
    from raysae.errors import UnfinishedError, UserError

    refused = []
    for name in args.runs:
        try:
            print(_write(name))
        except UserError as error:
            refused.append(str(error))
    if not refused:
        return DONE
    kind = UnfinishedError if len(refused) < len(args.runs) else UserError
    raise kind("\nerror: ".join(refused))


def _write(name: str) -> "Path":
    """Write the page of one run; returns its path. Raises UserError when that is not possible."""
    from raysae.activations import open_store
    from raysae.errors import UserError
    from raysae.records.damage import rebuilt_by
    from raysae.records.folder import read_run
    from raysae.report.page import write_report
    from raysae.storage.trouble import in_words, number_of

    run = read_run(name)
    if run.mended:
        raise UserError(f"{run.mended}; {rebuilt_by(run.recipe.run_place)}")
    if not run.selection_file.exists():
        raise UserError(f"{name}: the run has no selection.json yet; finish it first")
    store = open_store(run.recipe.store_place)
    try:
        for stage in ("sweep", "select", "atlas"):
            run.check_unaltered(stage)
        return write_report(run, store)
    except UserError as error:
        raise UserError(f"{error}; {rebuilt_by(run.recipe.run_place)}") from None
    except OSError as error:
        if number_of(error) is None:
            raise
        raise UserError(
            f"{in_words(error)}; the page is written into the run folder, so report a copy of it that "
            "is yours"
        ) from None
