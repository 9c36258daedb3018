"""What happens in a run, as one stream of events; console, log and MLflow listen to it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from raysae.console.board import console
from raysae.identity import Made, identifier
from raysae.sites import Site


@dataclass(frozen=True)
class Item:
    """A trial of the sweep, or a site of the atlas."""

    key: str
    """The same whenever the run is taken up again; MLflow runs are found by it."""
    name: str
    """For people, such as ``trial 3``."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The settings that were proposed for it."""

    @classmethod
    def of_trial(cls, number: int, parameters: Mapping[str, Any], made: Made | None) -> "Item":
        """A trial; without ``made``, one that version 0.1.0 trained."""
        place = f"{number:03d}" if made is None else identifier(made)
        return cls(f"trial/{place}", f"trial {number}", parameters)

    @classmethod
    def of_site(cls, site: Site, made: Made | None) -> "Item":
        """A site; without ``made``, one that version 0.1.0 trained."""
        more = "" if made is None else f"/{identifier(made)}"
        return cls(f"atlas/{site.folder}{more}", str(site))


class Event:
    """Something that happened."""


@dataclass(frozen=True)
class Began(Event):
    """Work on so many items begins."""

    title: str
    items: int


@dataclass(frozen=True)
class Ended(Event):
    """The work is over."""

    title: str


@dataclass(frozen=True)
class Progressed(Event):
    """An item was measured while it trains."""

    item: Item
    record: Mapping[str, Any]
    fraction: float
    """How much of it is done, from 0 to 1."""


@dataclass(frozen=True)
class Committed(Event):
    """An item was trained to its end: its SAE lies in ``folder``, with ``record`` as its figures."""

    item: Item
    record: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class Failed(Event):
    """An item ended without an SAE."""

    item: Item
    reason: str


@dataclass(frozen=True)
class Stopped(Event):
    """A trial was stopped early by a rule of the search."""

    item: Item
    reason: str


@dataclass(frozen=True)
class RunEnded(Event):
    """The run has everything that was asked for, or all that could be made."""

    metrics: Mapping[str, Any]
    """The sweet spot's figures; empty without a choice."""
    tags: Mapping[str, str]
    files: Sequence[Path]
    """What tells of the run."""


class Listener(Protocol):
    """Is told every event, in order. What it raises is said once, and stops nothing."""

    def hear(self, event: Event) -> None: ...


class Events:
    """The stream: whatever is emitted reaches each listener."""

    def __init__(self, *listeners: Listener):
        self.listeners = list(listeners)
        self._faulty: set[int] = set()

    def emit(self, event: Event) -> None:
        """Tell every listener. A listener's own trouble never stops a run."""
        for listener in self.listeners:
            try:
                listener.hear(event)
            except Exception as error:
                self._say_once(listener, error)

    @contextmanager
    def work(self, title: str, items: int) -> Iterator[Callable[[Event], None]]:
        """Work on so many items; gives ``emit``."""
        self.emit(Began(title, items))
        try:
            yield self.emit
        finally:
            self.emit(Ended(title))

    def _say_once(self, listener: Listener, error: Exception) -> None:
        if id(listener) not in self._faulty:
            self._faulty.add(id(listener))
            name = type(listener).__name__
            console.print(f"{name}: an event was not shown or recorded: {error!r}", style="yellow")
