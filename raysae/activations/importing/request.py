"""What a format's reader is asked to open."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raysae.activations.importing.options import ImportOptions

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many rows of it are done, and how many there are."""


def silent(stage: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Request:
    """A file or folder, what the person says of it, and where there is room for unpacked rows."""

    path: Path
    options: ImportOptions
    scratch: Path
    progress: Progress = silent
