"""``python -m raysae.report RUN [RUN ...]``: write the pages of runs again from their records."""

import argparse

from raysae.console.command_line import DONE


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code. Raises UserError for a run that is not finished."""
    parser = argparse.ArgumentParser(
        prog="python -m raysae.report", description="Write the report of finished runs again."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or its URI")
    args = parser.parse_args(arguments)
    from raysae.activations import open_store
    from raysae.errors import UserError
    from raysae.records.folder import read_run
    from raysae.report.page import write_report

    for name in args.runs:
        run = read_run(name)
        if not run.selection_file.exists():
            raise UserError(f"{name}: the run has no selection.json yet; finish it first")
        print(write_report(run, open_store(run.recipe.store_place)))
    return DONE
