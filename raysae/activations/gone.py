"""Files of a store that are lost while it is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysae.errors import UserError
from raysae.storage.trouble import in_words


@contextmanager
def told_if_gone(store: Path, file: Path) -> Iterator[None]:
    """Raise UserError instead of OSError, when the block cannot read a file of the store."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        what = file if store.is_dir() else store
        raise UserError(
            f"{what}: it was deleted or moved after the store was opened; put it back, or make the "
            "store again, and give the same command again"
        ) from None
    except OSError as error:
        raise UserError(in_words(error)) from None
