"""Shell completion, by argcomplete: ``eval "$(raysae completion bash)"``."""

import os
from collections.abc import Sequence

import argcomplete

from raysae.console.command_line import DONE, Parser

SHELLS = ("bash", "zsh", "fish", "powershell")


def main(arguments: list[str]) -> int:
    """``raysae completion SHELL``: print what makes the shell complete ``raysae``'s words."""
    parser = Parser(
        prog="raysae completion",
        description='Print the lines that make a shell complete verbs, options and recipe keys; for '
        'bash: eval "$(raysae completion bash)".',
    )  # fmt: skip
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(arguments).shell
    print(argcomplete.shellcode(["raysae"], shell="bash" if shell == "zsh" else shell))
    return DONE


def verb_given(verbs: Sequence[str]) -> str:
    """The verb on the line that the shell asks about; what follows it is then completed.

    Where the verb itself is being typed, the shell gets its answer and the process ends.
    """
    before = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    words = before.split()
    if len(words) > 1 and words[1] in verbs and (len(words) > 2 or before.endswith(" ")):
        os.environ["_ARGCOMPLETE"] = "2"  # the words before are not the verb's
        return words[1]
    parser = Parser(prog="raysae")
    parser.add_argument("verb", choices=verbs)
    parser.parse_args([])
    raise AssertionError("argcomplete ends the process")
