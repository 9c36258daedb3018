"""The ``raysae`` command: ``raysae VERB ...`` is ``python -m raysae.VERB ...``."""

import sys
from importlib import import_module

from raysae.console.command_line import REFUSED, run_command

VERBS = {
    "extract": "raysae.extraction.extract_command",
    "sweep": "raysae.pipeline.sweep_command",
    "atlas": "raysae.pipeline.atlas_command",
    "analyze": "raysae.pipeline.analyze_command",
    "report": "raysae.report.report_command",
    "store": "raysae.activations.store_command",
    "export": "raysae.export",
}


def main() -> int:
    """Run the verb that the command line names; its exit code."""
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        known = ", ".join(VERBS)
        print(f"usage: raysae VERB ...   with VERB one of: {known}", file=sys.stderr)
        return REFUSED
    return run_command(import_module(VERBS[sys.argv[1]]).main, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
