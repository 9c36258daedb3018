"""Checkpoints of an ensemble: the state of each member, in a folder for each."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from raysae.errors import UserError
from raysae.storage.files import remove_folder
from raysae.training.checkpoint import has_training, load_training, save_training
from raysae.training.ensemble.members import Member
from raysae.training.lost_device import raise_if_lost
from raysae.training.trainer import Trainer


class Checkpoints:
    """Saves members every ``seconds`` seconds, and calls ``on_saved`` with those saved."""

    def __init__(self, seconds: float, on_saved: Callable[[list[Member]], object]):
        self.seconds, self.on_saved = seconds, on_saved
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self.seconds

    def save(self, members: Iterable[Member]) -> None:
        """Save the active members. Where saving fails, the member's last checkpoint remains."""
        saved = [member for member in members if member.active and _saved(member)]
        if saved:
            with suppress(OSError, UserError):  # the storage of the copies may be unreachable
                self.on_saved(saved)
        self._saved = time.monotonic()


def _saved(member: Member) -> bool:
    """Save one member; returns whether it was saved."""
    if member.checkpoint is None or not member.begun or not member.trainer.step:
        return False
    if not member.checkpoint.parent.is_dir():  # deleted meanwhile: a part of it would be misleading
        return False
    try:
        save_training(member.trainer, member.checkpoint, member.history)
    except (OSError, UserError):  # such as a full disk
        return False
    return True


def begin(member: Member, make: Callable[[], Trainer]) -> None:
    """Give ``member`` a trainer from ``make``, in the state of the member's checkpoint if it has
    one.

    A checkpoint that is damaged or of another training is removed; the member then starts at step
    0. Raises what ``make`` raises.
    """
    trainer, folder = make(), member.checkpoint
    if folder is not None:
        with suppress(OSError):  # a full disk; the training goes on without checkpoints
            folder.parent.mkdir(parents=True, exist_ok=True)
    if folder is not None and has_training(folder):
        try:
            member.begin(trainer, load_training(trainer, folder))
            return
        except Exception as error:
            raise_if_lost(error)
            remove_folder(folder)
            trainer = make()
    member.begin(trainer, [])
