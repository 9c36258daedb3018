"""A thin shim: what is defined in ``__main__`` would be pickled by value in Ray's workers."""

from raysae.console.command_line import leave, run_command
from raysae.pipeline.sweep_command import main

if __name__ == "__main__":
    leave(run_command(main))
