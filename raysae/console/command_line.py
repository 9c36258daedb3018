"""What every command shares: exit codes, and errors printed as messages."""

import argparse
import atexit
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

LONGEST_WORD = 1000
"""The most characters of a word that a message shows whole."""
DONE, PARTLY, REFUSED, INTERRUPTED = 0, 1, 2, 130


def run_command(command: Callable[[list[str]], int], arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake becomes one message and exit code 2, never a traceback."""
    from raysae.console.quiet import quiet_environment
    from raysae.errors import UserError

    quiet_environment()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        _refuse_nul(given)
        return command(given)
    except UserError as error:
        print(f"error: {_shown(str(error))}", file=sys.stderr)
        return REFUSED
    except OSError as error:  # a full disk, a folder that may not be written
        if error.strerror is None:
            raise
        where = _shown(str(error.filename or "input or output"))
        print(f"error: {where}: {error.strerror}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return INTERRUPTED


def _shown(message: str) -> str:
    """A message without the middle of words that are very long, such as names of 10,000 characters."""
    return re.sub(
        rf"\S{{{LONGEST_WORD},}}",
        lambda found: f"{found[0][:100]}...{found[0][-20:]} ({len(found[0]):,} characters)",
        message,
    )


def _refuse_nul(arguments: list[str]) -> None:
    """Raise UserError when an argument holds a NUL, which no name of a file can."""
    from raysae.errors import UserError

    for argument in arguments:
        if "\0" in argument:
            raise UserError(f"{argument[:100]!r}: holds the character NUL; leave it out")


def leave(code: int) -> NoReturn:
    """End the process, without the second that Python takes to take torch and Ray apart."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def recipe_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser for CONFIG.yaml and key=value arguments, its help made from the recipe's fields."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="a recipe in YAML; without one, the quickstart")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe keys to replace")
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe")
    return parser


def split_config(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The config file, when the first argument is one, and the overrides."""
    if args.config is not None and "=" in args.config and not os.path.isfile(args.config):
        return None, [args.config, *args.overrides]
    return args.config, args.overrides


def _keys() -> str:
    import textwrap

    from raysae.config import describe_fields
    from raysae.metrics.definitions import help_text

    lines = ["recipe keys (and their defaults):"]
    for key, default, text in describe_fields():
        lines.append(f"  {key}={default}")
        lines += textwrap.wrap(text, 88, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines += [
        "",
        "metrics that a search may optimise or bound (sweep.objectives, sweep.constraints):",
    ]
    for name, text in help_text():
        lines += textwrap.wrap(text, 88, initial_indent=f"  {name}: ", subsequent_indent=" " * 6)
    return "\n".join(lines)
