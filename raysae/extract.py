"""A thin shim: what is defined in ``__main__`` would be pickled by value in Ray's workers."""

import sys

from raysae.activations.extraction.command import main
from raysae.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
