"""A thin shim: what is defined in ``__main__`` would be pickled by value in Ray's workers."""

import sys

from raysae.cli import run_command
from raysae.sweep.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
