"""Where the members of an ensemble stand, on disk: each in a folder of its own."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from raysae.errors import UserError
from raysae.storage.files import remove_folder
from raysae.training.checkpoint import has_training, load_training, save_training
from raysae.training.ensemble.members import Member
from raysae.training.trainer import Trainer


class Checkpoints:
    """Saves members every ``seconds``; ``on_saved`` is then called with those that were saved."""

    def __init__(self, seconds: float, on_saved: Callable[[list[Member]], object]):
        self.seconds, self.on_saved = seconds, on_saved
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self.seconds

    def save(self, members: Iterable[Member]) -> None:
        """Save where the active ones stand. Where that fails, the checkpoint before stays."""
        saved = [member for member in members if member.active and _saved(member)]
        if saved:
            with suppress(OSError, UserError):  # an unreachable place of the copies
                self.on_saved(saved)
        self._saved = time.monotonic()


def _saved(member: Member) -> bool:
    """Save one member; whether that was possible."""
    if member.checkpoint is None or not member.begun or not member.trainer.step:
        return False
    try:
        save_training(member.trainer, member.checkpoint, member.history)
    except (OSError, UserError):  # a full disk
        return False
    return True


def begin(member: Member, make: Callable[[], Trainer]) -> None:
    """Give ``member`` a trainer, from ``make``, that stands where its checkpoint says.

    A checkpoint that is damaged or of another training is removed; the member then begins anew.
    """
    trainer, folder = make(), member.checkpoint
    if folder is not None and has_training(folder):
        try:
            member.begin(trainer, load_training(trainer, folder))
            return
        except Exception:
            remove_folder(folder)
            trainer = make()
    member.begin(trainer, [])
