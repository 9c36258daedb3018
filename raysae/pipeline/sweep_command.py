"""``python -m raysae.sweep``: read the arguments, run the main job, print the last screen."""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raysae.console.command_line import (
    DONE,
    INTERRUPTED,
    PARTLY,
    add_log_options,
    recipe_parser,
    split_config,
)
from raysae.console.output import say
from raysae.errors import UserError, in_one_line

if TYPE_CHECKING:
    from raysae.config import Recipe

Log = Literal["auto", "quiet", "json"]
STARTED = time.monotonic()


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code. Raises UserError on unusable input."""
    parser = recipe_parser(
        "python -m raysae.sweep",
        "Extract activations, sweep SAE configs over them, choose the sweet spot, train it at "
        "every layer and position, report.",
    )
    parser.add_argument("--resume", metavar="RUN", help="continue a run: its folder or URI")
    parser.add_argument(
        "--force", action="store_true",
        help="with --resume: continue although config, store or version changed; recorded",
    )  # fmt: skip
    parser.add_argument("--select", metavar="RULE", help="choose again by RULE, without training")
    parser.add_argument("--run", metavar="RUN", help="the run folder (or URI) for --select")
    add_run_options(parser)
    args = parser.parse_intermixed_args(arguments)
    config, overrides = split_config(args)
    if args.address:
        overrides = [*overrides, f"resources.address={args.address}"]
    if (args.select is None) != (args.run is None):
        raise UserError("--select RULE and --run RUN need each other; give both")
    if args.select is not None:
        overrides = [*overrides, f"select.rule={args.select}"]
    recipe = _recipe(args.run or args.resume, config, overrides, reading=args.select is not None)
    if args.print_config and not args.dry_run:
        print(recipe.to_yaml(), end="")
        return DONE
    if args.select is not None:
        return _select(recipe)
    code = carry_out(recipe, args.log, dry=args.dry_run, force=args.force)
    if args.print_config:
        print(f"\n{recipe.to_yaml()}", end="")
    return code


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all commands have that carry out a recipe."""
    parser.add_argument(
        "--dry-run", action="store_true",
        help="say what the run would do; with --print-config its resolved recipe too",
    )  # fmt: skip
    add_log_options(parser)
    parser.add_argument("--address", help="a Ray cluster to join; the same as resources.address=")


def carry_out(recipe: "Recipe", log: "Log", *, dry: bool, force: bool, chosen: bool = False) -> int:
    """Run the main job of ``recipe``, or say what it would do (``dry``); the exit code.

    ``chosen``: only what follows the choice that its run has made. Raises UserError on unusable input.
    """
    from raysae.console.board import console, emit, set_log
    from raysae.pipeline.begun import continuing
    from raysae.pipeline.run import run_atlas, run_sweep
    from raysae.pipeline.summary import print_summary

    set_log("auto" if dry and log == "quiet" else log)
    if dry:
        from raysae.pipeline.dry_run import dry_run

        dry_run(recipe, STARTED)
        return DONE
    try:
        if recipe.several:
            return _run_models(recipe, force)
        result = (run_atlas if chosen else run_sweep)(recipe, force=force)
    except KeyboardInterrupt:
        say(f"interrupted; {continuing(recipe)} continues it", sys.stderr)
        return INTERRUPTED
    console.quiet = False

    def show() -> None:
        choice = result.selection["choice"]
        emit("outcome", run=result.folder, choice=choice, failures=result.failures)
        print_summary(result, time.monotonic() - STARTED, short=log == "quiet")

    return DONE if _shown(show, result.folder) and not result.failures else PARTLY


def _select(recipe: "Recipe") -> int:
    from raysae.pipeline.run import select_again
    from raysae.pipeline.summary import print_selection

    result = select_again(recipe)
    shown = _shown(lambda: print_selection(result), result.folder)
    return DONE if shown and not (result.missing_choice or result.broken) else PARTLY


def _shown(show: Callable[[], None], folder: Path) -> bool:
    """Show the last screen; whatever fails in it, the run is done. Returns whether it was shown."""
    try:
        show()
        return True
    except Exception as error:
        with suppress(OSError):
            say(
                f"error: the last screen could not be shown ({in_one_line(error)}); everything else is "
                f"done, in {folder}", sys.stderr,
            )  # fmt: skip
        return False


def _run_models(recipe: "Recipe", force: bool) -> int:
    from raysae.console.board import console, emit
    from raysae.pipeline.several_models import print_comparison, run_models

    result = run_models(recipe, force=force)
    console.quiet = False

    def show() -> None:
        emit("outcome", run=result.folder, models=result.rows, failures=result.failures)
        print_comparison(result)

    return DONE if _shown(show, result.folder) and not result.failures else PARTLY


def _recipe(
    resume: str | None, config: str | None, overrides: list[str], reading: bool
) -> "Recipe":
    from raysae.config import load_recipe

    if resume is None:
        return load_recipe(config, overrides)
    if config is not None:
        raise UserError("--resume takes its recipe from the run folder; leave out the config file")
    return recipe_of_run(resume, overrides, reading=reading)


def recipe_of_run(resume: str, overrides: list[str], *, reading: bool = False) -> "Recipe":
    """The recipe of the run at ``resume``, a folder or a URI, to continue it, or for ``reading`` only.

    Raises UserError when it is not a run.
    """
    from raysae.config.loading import load_run, load_to_continue
    from raysae.records.run_files import RunFiles
    from raysae.storage.files import expanded
    from raysae.storage.remote import is_uri, join, split

    if not is_uri(resume):
        folder = expanded(resume)
        folder = folder.parent if folder.name == "config.yaml" else folder
        return load_to_continue(folder, overrides, reading=reading)
    runs_dir, name = split(resume)
    files = RunFiles.at(join(runs_dir, name))
    if not files.fetch(files.path / "config.yaml"):
        raise UserError(f"{resume.partition('?')[0]}: not a run (no config.yaml there)")
    place = {"runs_dir": runs_dir, "name": name}
    return load_run(files.path, overrides, place, reading=reading)
