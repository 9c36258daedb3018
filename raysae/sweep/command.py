"""``python -m raysae.sweep``: arguments in, the main job, the last screen."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from raysae.cli import DONE, INTERRUPTED, PARTLY, recipe_parser, split_config

if TYPE_CHECKING:
    from raysae.config import Recipe

STARTED = time.time()


def main(arguments: list[str]) -> int:
    """Run the command; its exit code. Raises UserError on unusable input."""
    parser = recipe_parser(
        "python -m raysae.sweep",
        "Extract activations, sweep SAE configs over them, choose the sweet spot, train it at "
        "every layer and position, report.",
    )
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run folder")
    parser.add_argument("--address", help="a Ray cluster to join; the same as resources.address=")
    args = parser.parse_args(arguments)
    config, overrides = split_config(args)
    if args.address:
        overrides = [*overrides, f"resources.address={args.address}"]
    recipe = _recipe(args.resume, config, overrides)
    if args.print_config:
        print(recipe.to_yaml(), end="")
        return DONE
    from raysae.sweep.run import run_sweep
    from raysae.sweep.summary import print_summary

    try:
        result = run_sweep(recipe)
    except KeyboardInterrupt:
        print(
            f"interrupted; python -m raysae.sweep --resume {recipe.run_folder} goes on",
            file=sys.stderr,
        )
        return INTERRUPTED
    print_summary(result, time.time() - STARTED)
    return PARTLY if result.failures else DONE


def _recipe(resume: Path | None, config: str | None, overrides: list[str]) -> "Recipe":
    from raysae.config import load_recipe
    from raysae.errors import UserError
    from raysae.records.folder import read_recipe

    if resume is None:
        return load_recipe(config, overrides)
    if config is not None:
        raise UserError("--resume takes its recipe from the run folder; leave out the config file")
    read_recipe(resume)
    place = [f"name={resume.absolute().name}", f"runs_dir={resume.absolute().parent}"]
    return load_recipe(resume / "config.yaml", [*place, *overrides])
