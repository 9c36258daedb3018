"""The ``raysae`` command: ``raysae VERB ...`` is ``python -m raysae.VERB ...``."""

import os
import sys
from importlib import import_module

from raysae.console.command_line import DONE, EXIT_CODES, REFUSED, run_command

VERBS = {
    "extract": ("raysae.extraction.extract_command", "main", "extract activations into a store"),
    "sweep": (
        "raysae.pipeline.sweep_command",
        "main",
        "the main job: sweep, choose, atlas, report",
    ),
    "atlas": ("raysae.pipeline.atlas_command", "main", "one config at every layer and position"),
    "analyze": ("raysae.pipeline.analyze_command", "main", "what the features of an atlas mean"),
    "report": ("raysae.report.report_command", "main", "write the page of a run again"),
    "browse": ("raysae.browser.browse_command", "main", "pages to look through a run's features"),
    "serve": ("raysae.serving.serve_command", "main", "which features are active in your texts"),
    "store": ("raysae.activations.store_command", "main", "import, verify and show stores"),
    "export": ("raysae.export", "main", "SAEs in another library's format"),
    "runs": ("raysae.pipeline.runs_command", "runs", "list runs and their states"),
    "show": ("raysae.pipeline.runs_command", "show", "the last screen of a run, again"),
    "completion": ("raysae.console.completion", "main", "shell completion: bash, zsh, fish"),
    "failures": ("raysae.pipeline.runs_command", "failures", "what failed in a run, and why"),
}
"""By verb: its module, the function there, and what it does."""


def main() -> int:
    """Run the verb that the command line names; its exit code."""
    if "_ARGCOMPLETE" in os.environ:
        return complete()
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb in ("-h", "--help", "help"):
        print(usage())
        return DONE
    if verb not in VERBS:
        print(usage(), file=sys.stderr)
        return REFUSED
    module, function, _ = VERBS[verb]
    return run_command(getattr(import_module(module), function), sys.argv[2:])


def complete() -> int:
    """Answer a shell that asks for the words that may follow: a verb, or what the verb takes."""
    from raysae.console.completion import verb_given

    verb = verb_given(list(VERBS))
    module, function, _ = VERBS[verb]
    return int(getattr(import_module(module), function)([]))


def usage() -> str:
    """The verbs and what each does, a line each."""
    lines = [f"  {verb:9} {about}" for verb, (_, _, about) in VERBS.items()]
    return "\n".join(
        ["usage: raysae VERB ...   (raysae VERB --help says more)", "", *lines, "", EXIT_CODES]
    )


if __name__ == "__main__":
    sys.exit(main())
