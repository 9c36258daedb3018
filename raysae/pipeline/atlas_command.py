"""``python -m raysae.atlas``: the atlas of a given config, or of the choice of a finished sweep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raysae.console.command_line import DONE, recipe_parser, split_config
from raysae.console.shell import raysae_command
from raysae.errors import UserError
from raysae.pipeline.sweep_command import add_run_options, carry_out, recipe_of_run

if TYPE_CHECKING:
    from raysae.config import Recipe

OF_AN_ATLAS = ("atlas.", "resources.", "records.", "store", "working_dir")
"""Keys, or their beginnings, that may be given with ``--run``: the config is that of the run."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code. Raises UserError on unusable input."""
    parser = recipe_parser(
        "python -m raysae.atlas",
        "Train one SAE config at every layer and position, without a search: the config of a recipe "
        "(sae.d_sae, sae.k, ...), or with --run the one that a finished sweep has chosen, into that "
        "run's own atlas. The same command resumes.",
    )
    parser.add_argument(
        "--run", metavar="RUN",
        help="a finished sweep (its folder or URI), or an atlas: more of its sites, with its config",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="as in python -m raysae.sweep")
    add_run_options(parser)
    args = parser.parse_intermixed_args(arguments)
    config, overrides = split_config(args)
    if args.address:
        overrides = [*overrides, f"resources.address={args.address}"]
    recipe = given_recipe(config, overrides) if args.run is None else chosen_recipe(
        args.run, config, overrides
    )  # fmt: skip
    if args.print_config and not args.dry_run:
        print(recipe.to_yaml(), end="")
        return DONE
    chosen = args.run is not None
    code = carry_out(recipe, args.log, dry=args.dry_run, force=args.force, chosen=chosen)
    if args.print_config:
        print(f"\n{recipe.to_yaml()}", end="")
    return code


def given_recipe(config: str | None, overrides: Sequence[str]) -> "Recipe":
    """The recipe of an atlas of the config in ``config`` and ``overrides``, without a search."""
    from raysae.config import load_recipe

    return load_recipe(config, [*overrides, "sweep.enabled=false", "atlas.enabled=true"])


def chosen_recipe(run: str, config: str | None, overrides: Sequence[str]) -> "Recipe":
    """The recipe of a run with other sites for its atlas.

    Raises UserError when there is no such run, when it has chosen nothing, or when an override is not
    about the atlas.
    """
    for key in (one.partition("=")[0] for one in overrides):
        if not key.startswith(OF_AN_ATLAS):
            raise UserError(
                f"{key}: the config of an atlas with --run is the run's; expected keys of atlas, "
                f"resources or records. For another config: {raysae_command('atlas')} CONFIG.yaml "
                f"name=NAME {key}=..."
            )
    if config is not None:
        raise UserError("--run takes its recipe from the run; leave out the config file")
    recipe = recipe_of_run(run, [*overrides, "atlas.enabled=true"])
    if recipe.several:
        raise UserError(
            f"{run}: holds a run for each of several models or layers; name one: --run {run}/NAME"
        )
    if recipe.sweep.enabled:
        check_choice(recipe)
    return recipe


def check_choice(recipe: "Recipe") -> None:
    """Raise UserError when the recipe's run has not chosen a trial, or is not finished."""
    from raysae.records.choice import read_choice
    from raysae.records.folder import read_run

    place = recipe.run_place
    again = raysae_command("sweep", "--resume", place)
    run = read_run(place)
    states = [
        f"{name} is {run.state(name)}"
        for name in ("sweep", "select")
        if run.state(name) not in ("done", "partial")
    ]
    if states or not run.selection_file.is_file():
        what = ", ".join(states) or "its selection.json is missing"
        raise UserError(
            f"{place}: the run has not chosen a config yet ({what}); {again} finishes it"
        )
    choice = read_choice(run)["choice"]
    if choice["trial"] is None:
        rule = raysae_command("sweep", "--select", "RULE", "--run", place)
        raise UserError(
            f"{place}: the run has chosen no config: {choice['reason']}; choose by another rule: {rule}, "
            f"or name a trial: {again} select.trial=N"
        )
