"""The request that the reader of a format receives."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raysae.activations.importing.options import ImportOptions

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, the rows done so far, and the rows in total."""


def silent(stage: str, done: int, total: int) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Request:
    """A file or folder to open, the import's options, and a folder for temporary files."""

    path: Path
    options: ImportOptions
    scratch: Path
    progress: Progress = silent
