"""The events of a run, as one stream that console, log and MLflow listen to."""

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
    """The same in every attempt at the run; MLflow runs are found by it."""
    name: str
    """The item in words, such as ``trial 3``."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The parameters that were proposed for it, by dotted key."""

    @classmethod
    def of_trial(cls, number: int, parameters: Mapping[str, Any], made: Made | None) -> "Item":
        """The item of a trial; ``made`` is None for one that version 0.1.0 trained."""
        place = f"{number:03d}" if made is None else identifier(made)
        return cls(f"trial/{place}", f"trial {number}", parameters)

    @classmethod
    def of_site(cls, site: Site, made: Made | None) -> "Item":
        """The item of a site; ``made`` is None for one that version 0.1.0 trained."""
        more = "" if made is None else f"/{identifier(made)}"
        return cls(f"atlas/{site.folder}{more}", str(site))


class Event:
    """The base class of all events."""


@dataclass(frozen=True)
class Began(Event):
    """Work on ``items`` items begins."""

    title: str
    items: int


@dataclass(frozen=True)
class Ended(Event):
    """The work that ``title`` names has ended."""

    title: str


@dataclass(frozen=True)
class Progressed(Event):
    """An item that is still in training was evaluated."""

    item: Item
    record: Mapping[str, Any]
    fraction: float
    """The fraction of its training that is done, from 0 to 1."""


@dataclass(frozen=True)
class Committed(Event):
    """An item was trained to its end; its SAE is in ``folder``, and its figures are in ``record``."""

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
class Analysed(Event):
    """A phase of the analysis has its result, in ``folder``."""

    phase: str
    figures: Mapping[str, float | None]
    folder: Path


@dataclass(frozen=True)
class Result:
    """What a run leaves to be found by its figures: the chosen SAE, or the atlas."""

    name: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    item: str | None = None
    """The key of the trial whose SAE it is."""


@dataclass(frozen=True)
class RunEnded(Event):
    """The run has ended; everything that could be made exists."""

    metrics: Mapping[str, Any]
    """The sweet spot's figures; empty without a choice."""
    tags: Mapping[str, str]
    """The choice and its reason."""
    files: Sequence[Path]
    """The files and folders that describe the run."""
    results: Sequence[Result] = ()
    """The chosen SAE and the atlas, as far as there are any."""


class Listener(Protocol):
    """Gets every event, in order. An error that it raises is printed once and stops nothing."""

    def hear(self, event: Event) -> None:
        """Handle the event."""


class Events:
    """The stream of events: each event goes to every listener."""

    def __init__(self, *listeners: Listener):
        self.listeners = list(listeners)
        self._faulty: set[int] = set()

    def emit(self, event: Event) -> None:
        """Send the event to every listener. An error in a listener never stops a run."""
        for listener in self.listeners:
            try:
                listener.hear(event)
            except Exception as error:
                self._warn_once(listener, error)

    @contextmanager
    def work(self, title: str, items: int) -> Iterator[Callable[[Event], None]]:
        """Emit ``Began`` and ``Ended`` around the block, which gets ``emit``."""
        self.emit(Began(title, items))
        try:
            yield self.emit
        finally:
            self.emit(Ended(title))

    def _warn_once(self, listener: Listener, error: Exception) -> None:
        if id(listener) not in self._faulty:
            self._faulty.add(id(listener))
            name = type(listener).__name__
            console.print(f"{name}: an event was not shown or recorded: {error!r}", style="yellow")
