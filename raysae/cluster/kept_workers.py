"""Actors of the pool that are kept between two pools: a new process imports torch for seconds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any


class KeptWorkers:
    """Idle actors, all with the same reservation."""

    def __init__(self, wanted: int = 0) -> None:
        self.wanted = wanted
        """How many actors a later pool has work for."""
        self.options: dict[str, Any] = {}
        self.actors: list[Any] = []

    def keep(self, actors: list[Any], options: Mapping[str, Any]) -> None:
        """Keep actors that have the reservation ``options``, beside those that are kept with it."""
        if options != self.options:
            self.end()
        self.options = dict(options)
        self.actors += actors

    def take(self, options: Mapping[str, Any]) -> Any | None:
        """An actor with this reservation, or None. Those with another one are ended: they would hold
        what the caller is about to reserve."""
        if options != self.options:
            self.end()
        return self.actors.pop(0) if self.actors else None

    def end(self) -> None:
        """End all actors."""
        for actor in self.actors:
            end_actor(actor)
        self.actors = []


_kept: KeptWorkers | None = None
"""Those of the block that is running; None outside."""


def end_actor(actor: Any) -> None:
    """End an actor and its process."""
    import ray

    with suppress(Exception):  # Ray itself may be gone
        ray.kill(actor)


@contextmanager
def workers_kept(wanted: int = 0) -> Iterator[None]:
    """Inside the block, a pool that has done its items leaves its actors to the next pool with the same
    reservation.

    A pool with fewer items than workers starts up to ``wanted`` actors all the same: a later one has work
    for them. Whatever else needs CPUs or GPUs of Ray in the block calls ``end_kept_workers`` first.
    """
    global _kept
    if _kept is not None:
        yield
        return
    _kept = KeptWorkers(wanted)
    try:
        yield
    finally:
        _kept.end()
        _kept = None


def kept_workers() -> KeptWorkers | None:
    """The actors that are kept in the running block; None outside of one."""
    return _kept


def end_kept_workers() -> None:
    """End the actors that are kept, so that others can reserve what they hold."""
    if _kept is not None:
        _kept.end()
