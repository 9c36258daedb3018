"""A thin shim: Ray would pickle by value whatever ``__main__`` defined."""

from raysae.console.command_line import leave, run_command
from raysae.pipeline.atlas_command import main

if __name__ == "__main__":
    leave(run_command(main))
