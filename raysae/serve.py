"""A thin shim; see ``raysae.serving.serve_command``."""

import sys

from raysae.console.command_line import run_command
from raysae.serving.serve_command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
