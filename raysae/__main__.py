"""The ``raysae`` command: ``raysae VERB ...`` is ``python -m raysae.VERB ...``."""

import sys
from importlib import import_module

from raysae.cli import REFUSED, run_command

VERBS = {
    "extract": "raysae.activations.extraction.command",
    "sweep": "raysae.sweep.command",
    "report": "raysae.report.command",
    "store": "raysae.activations.store_command",
    "export": "raysae.export",
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        known = ", ".join(VERBS)
        print(f"usage: raysae VERB ...   with VERB one of: {known}", file=sys.stderr)
        return REFUSED
    return run_command(import_module(VERBS[sys.argv[1]]).main, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
