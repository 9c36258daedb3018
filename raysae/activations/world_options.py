"""The options of ``raysae.store synthetic`` that say what the world is like."""

import argparse
from typing import TYPE_CHECKING, Any

from raysae.errors import UserError

if TYPE_CHECKING:  # --help need not import torch
    from raysae.activations.hard_world import HardWorld
    from raysae.activations.synthetic import SuperpositionWorld

HARD = {
    "rate_exponent": "exponent of Zipf's law of the atoms' rates (0.5)",
    "max_rate": "share of rows in which the most frequent atom fires (0.35)",
    "min_rate": "share of rows in which the rarest atom fires (0.01)",
    "roots": "atoms that have children; children fire only with their parent (0)",
    "children": "children of each parent (4)",
    "depth": "generations below the roots (1)",
    "exclusive": "share of parents of whose children at most one fires in a row (0.5)",
    "unscaled": "children's magnitudes do not follow their parent's",
    "correlation_rank": "hidden factors that make atoms fire together (0)",
    "correlation_scale": "standard deviation of an atom's weight on each factor (0.1)",
    "magnitude": "mean magnitude of the most frequent atom (1)",
    "rare_magnitude": "mean magnitude of the rarest atom (as --magnitude)",
    "spread": "standard deviation of an atom's magnitude (0.15)",
    "spread_varies": "standard deviation of that from atom to atom (0)",
    "bias": "norm of a vector that is added to every row (0)",
    "near_orthogonal": "atoms as orthogonal as they can be, not random",
    "noise": "norm of the noise that is added to every row, root mean square (0)",
    "sinks": "share of rows that are attention sinks (0)",
    "sink_norm": "norm of the vector that is added to these (100)",
}
"""The options of a hard world, each with its help and default."""
SWITCHES = ("unscaled", "near_orthogonal")
WHOLE = ("roots", "children", "depth", "correlation_rank")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; each is None where it is not given."""
    group = parser.add_argument_group("a hard world, if any of these is given (not with --p)")
    for name, text in HARD.items():
        flag = "--" + name.replace("_", "-")
        if name in SWITCHES:
            group.add_argument(flag, action="store_true", default=None, help=text)
            continue
        kind: Any = int if name in WHOLE else float
        group.add_argument(flag, type=kind, metavar="N", help=text)


def world_of(args: argparse.Namespace) -> "SuperpositionWorld | HardWorld":
    """The world of the options. Raises UserError on a value out of range."""
    from raysae.activations.hard_world import HardWorld
    from raysae.activations.synthetic import SuperpositionWorld

    given = {name: getattr(args, name) for name in HARD if getattr(args, name) is not None}
    if not given:
        return SuperpositionWorld(
            args.d_in, args.atoms, 0.03 if args.p is None else args.p, args.seed
        )
    if args.p is not None:
        named = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UserError(
            f"--p {args.p}: {named} makes a hard world, whose rates are --max-rate and --min-rate"
        )
    if given.pop("unscaled", False):
        given["scaled"] = False
    try:
        return HardWorld(d_in=args.d_in, atoms=args.atoms, seed=args.seed, **given)
    except ValueError as error:
        name, rest = str(error).split(" ", 1)
        raise UserError(f"--{name.replace('_', '-')} {rest}") from None
