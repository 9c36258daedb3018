"""A thin shim: what is defined in ``__main__`` would be pickled by value in Ray's workers."""

import sys

from raysae.console.command_line import run_command
from raysae.pipeline.analyze_command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
