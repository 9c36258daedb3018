"""What every command shares: exit codes, and errors printed as messages."""

import argparse
import atexit
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from raysae.printable import printable

LONGEST_WORD = 1000
"""The most characters of a word that a message shows whole."""
DONE, PARTLY, REFUSED, INTERRUPTED = 0, 1, 2, 130
FAILED = 1
"""The exit code of an unexpected error, as Python has it."""
EXIT_CODES = (
    "exit codes: 0 done; 1 a part failed, the same command tries it again; 2 refused before any work; "
    "130 interrupted, the same command continues"
)


def run_command(command: Callable[[list[str]], int], arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code.

    A user's mistake becomes one message and exit code 2, and 1 where work had begun; never a traceback.
    """
    from raysae.console.output import safe_streams
    from raysae.console.quiet import quiet_environment

    quiet_environment()
    with safe_streams():
        given = sys.argv[1:] if arguments is None else arguments
        return _run(command, [os.fspath(argument) for argument in given])


def _run(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    from raysae.console.output import say
    from raysae.errors import UserError
    from raysae.redaction import traceback_of

    try:
        _refuse_nul(arguments)
        refuse_secrets(arguments)
        return command(arguments)
    except (UserError, OSError) as error:
        return refused(error)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # Python would print its traceback as it is
        say(traceback_of(error).rstrip(), sys.stderr)
        return FAILED


def refuse_secrets(arguments: list[str]) -> None:
    """Raise UserError when an argument holds a secret: a run records its command line."""
    from raysae.errors import UserError
    from raysae.redaction import WHERE_SECRETS_BELONG, is_free_text, secret_in

    before = ""
    for number, argument in enumerate(arguments, start=1):
        key, equals, value = argument.partition("=")
        named = equals != "" and "/" not in key and "@" not in key
        found = secret_in(value if named else argument, named and is_free_text(key))
        if found is not None:
            option = before if before.startswith("-") else f"argument {number}"
            raise UserError(
                f"{key if named else option}: holds {found}, which would be seen in the "
                f"list of processes and in a run's records; {WHERE_SECRETS_BELONG}"
            )
        before = argument


def refused(error: Exception) -> int:
    """Print why a command ended; returns its exit code."""
    from raysae.console.output import say
    from raysae.errors import UnfinishedError
    from raysae.redaction import traceback_of
    from raysae.storage.trouble import in_words, number_of

    if isinstance(error, OSError):
        if number_of(error) is None:  # no fault of a user
            say(traceback_of(error).rstrip(), sys.stderr)
            return FAILED
        say(f"error: {_shown(in_words(error))}", sys.stderr)
        return REFUSED
    say(f"error: {_shown(str(error))}", sys.stderr)
    return PARTLY if isinstance(error, UnfinishedError) else REFUSED


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
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader has left, or the disk is full
            stream.flush()
    os._exit(code)


class Parser(argparse.ArgumentParser):
    """A parser whose messages show control characters of the arguments as escapes, and that a shell
    asks for the words that may follow."""

    _completing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments; where a shell asks, answer it and end the process instead."""
        if "_ARGCOMPLETE" in os.environ and not self._completing:
            import argcomplete

            self._completing = True  # argcomplete parses what is there so far by this parser
            argcomplete.autocomplete(self, always_complete_options=False)  # ends the process
        return super().parse_known_args(args, namespace)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments among which options may stand anywhere."""
        if "_ARGCOMPLETE" in os.environ:  # it would know nothing of the words that are no options
            return self.parse_args(args, namespace)
        return super().parse_intermixed_args(args, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message, lines=True), file)


def recipe_parser(program: str, description: str) -> Parser:
    """A parser for CONFIG.yaml and key=value arguments; ``--help-keys`` prints the recipe's keys."""
    parser = Parser(prog=program, description=description, epilog=EXIT_CODES)
    parser.add_argument("config", nargs="?", help="a recipe in YAML; without one, the quickstart")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe keys to replace")
    for action in parser._actions[-2:]:
        action.completer = _complete_recipe  # type: ignore[attr-defined]
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe")
    parser.add_argument(
        "--help-keys", nargs="?", const="", metavar="PART", action=_HelpKeys,
        help="print the recipe's keys and their defaults, all or those of one PART (sae, training, "
        "sweep, ..., metrics)",
    )  # fmt: skip
    return parser


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a command tells of its progress; they set ``log``."""
    parser.add_argument(
        "--log", choices=["auto", "quiet", "json"], default="auto",
        help="quiet: only the outcome; json: a JSON line for everything",
    )  # fmt: skip
    for name in ("quiet", "json"):
        parser.add_argument(
            f"--{name}", dest="log", action="store_const", const=name, help=f"as --log {name}"
        )


def split_config(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The config file, when the first argument is one, and the overrides."""
    if args.config is not None and "=" in args.config and not os.path.isfile(args.config):
        return None, [args.config, *args.overrides]
    return args.config, args.overrides


class _HelpKeys(argparse.Action):
    """Prints the recipe's keys, all or those of one part, and ends the command."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        from raysae.console.help_keys import keys_text
        from raysae.errors import UserError

        try:
            print(keys_text(values))
        except UserError as error:
            print(f"{option} {error}", file=sys.stderr)
            sys.exit(REFUSED)
        sys.exit(DONE)


def _complete_recipe(prefix: str, **_: Any) -> list[str]:
    from raysae.console.help_keys import complete_recipe

    return complete_recipe(prefix)
