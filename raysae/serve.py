"""A thin shim; see ``raysae.serving.serve_command``."""

import sys

from raysae.serving.serve_command import main
from raysae.console.command_line import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
