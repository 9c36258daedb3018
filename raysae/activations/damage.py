"""Errors of damaged files in words: what pyarrow, torch and numpy raise becomes a UserError."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from raysae.errors import UserError

DAMAGE = (
    pa.ArrowException, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    ArithmeticError, RuntimeError, StopIteration, MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What a damaged or hostile file can raise in a reader. No single library names all its errors."""
LONGEST_REASON = 200


@contextmanager
def damage_told(path: object, kind: str, advice: str = "") -> Iterator[None]:
    """Raise UserError when the block finds that the file ``path`` is no readable ``kind``.

    ``advice`` says what to do; a UserError of the block is raised as it is.
    """
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(
            f"{path}: not a readable {kind}: truncated or damaged, or of another kind "
            f"({reason(error)}){advice and f'; {advice}'}"
        ) from None


def reason(error: BaseException) -> str:
    """The first line of the error's message, of bounded length; its class when it has no message."""
    lines = str(error).strip().splitlines()
    first = lines[0].partition(". ")[0] if lines else ""
    return first[:LONGEST_REASON] or type(error).__name__
