"""``python -m raysae.report RUN [RUN ...]``: write the pages of runs again from their records, and, of
several runs, a page that compares them."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from raysae.console.command_line import DONE, PARTLY, REFUSED, Parser
from raysae.console.output import say
from raysae.errors import UserError, in_one_line
from raysae.storage.files import expanded


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code: 1 if only some of the runs have a page now.

    A run that cannot be shown is said on stderr, and the others are shown. Raises UserError when the
    only run is not finished.
    """
    parser = Parser(
        prog="python -m raysae.report",
        description="Write the report of finished runs again, and of several a page that compares them.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or its URI")
    parser.add_argument(
        "--out", metavar="PAGE", help="where the comparison goes (default: comparison.html beside "
        "the first run)",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    runs = list(dict.fromkeys(args.runs))
    shown, reasons = _write_pages(runs)
    if len(shown) > 1:
        _, more = _tried("the comparison", lambda: compare(shown, args.out))
        reasons += more
    if not reasons:
        return DONE
    refused = not shown and all(isinstance(one, UserError | OSError) for one in reasons)
    return REFUSED if refused else PARTLY


def _write_pages(runs: list[str]) -> tuple[list[str], list[Exception]]:
    """Write the page of each run; the runs that have one now, and why others have none."""
    if len(runs) == 1:
        alone = runs[0]
        done, reasons = _tried(alone, lambda: write_page(alone), (UserError, OSError))
        return runs * done, reasons
    shown: list[str] = []
    reasons = []
    for name in runs:
        done, found = _tried(name, partial(write_page, name))
        shown += [name] * done
        reasons += found
    return shown, reasons


def _tried(
    name: str, write: Callable[[], str], raised: tuple[type[Exception], ...] = ()
) -> tuple[bool, list[Exception]]:
    """Say the path of a page that is written, or why it cannot be; errors in ``raised`` are raised."""
    try:
        say(write())
        return True, []
    except raised:
        raise
    except Exception as error:  # whatever is wrong with a run, the others are shown
        say(_sentence(name, error), sys.stderr)
        return False, [error]


def compare(names: list[str], out: str | None = None) -> str:
    """Write the page that compares the runs of these names, all finished; returns its path.

    It is ``out``, or by default ``comparison.html`` beside the first run that is a folder, or here.
    """
    from raysae.records.folder import read_run
    from raysae.report.runs_page import PAGE, write_runs_page

    runs = [read_run(name) for name in names]
    folders = [run.path.parent for run in runs if run.uri is None]
    page = expanded(out) if out else (folders[0] if folders else Path.cwd()) / PAGE
    return str(write_runs_page(runs, page.absolute()))


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
