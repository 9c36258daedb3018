"""A thin shim; see ``raysae.report.command``."""

import sys

from raysae.cli import run_command
from raysae.report.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
