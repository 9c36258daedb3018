"""A thin shim; see ``raysae.browser.browse_command``."""

import sys

from raysae.browser.browse_command import main
from raysae.console.command_line import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
