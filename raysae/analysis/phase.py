"""The contract of a phase: what it needs, its work items, its result.

A phase is a file in ``raysae/analysis/phases`` with one subclass of ``Phase``, and a test. Its items are
done by the pool, each once, in whatever order and on whatever node; what an item leaves is committed, so
that an interrupted phase goes on where it stopped. A phase decides nothing by the clock, and all that is
random comes from ``subject.seed``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from raysae.analysis.section import Section
from raysae.analysis.subject import Subject
from raysae.config.section import Section as Settings
from raysae.sites import Site

if TYPE_CHECKING:
    import pyarrow as pa

Alive = Callable[[], None]
"""To be called after every step of an item: it tells that the worker does not hang."""


Parts = Callable[[], "Iterator[pa.Table]"]


@dataclass(frozen=True)
class Item:
    """One piece of a phase's work."""

    key: str
    """A name of a folder, another for every item of the phase."""
    sites: tuple[Site, ...]
    """The sites whose SAEs it uses: it is done again when one of them is another."""


@dataclass(frozen=True)
class Result:
    """What a phase found."""

    figures: Mapping[str, float | None]
    """By name, for MLflow and the console; None: undefined."""
    section: Section
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Rows of the tables, each written as ``NAME.parquet``."""
    brief: str = ""
    """The outcome in one line, for the console."""
    large: Mapping[str, Parts] = field(default_factory=dict)
    """Tables too large for memory: what gives each one's parts as tables of Arrow."""


class Phase(ABC):
    """One phase of analysis."""

    name: ClassVar[str]
    """The name of its module, and of its folder."""
    title: ClassVar[str]
    """What it is about, as a heading."""
    generation: ClassVar[int] = 1
    """To be raised when its code gives other results than before."""
    quick: ClassVar[bool] = False
    """Whether the main job runs it unless it is told otherwise: seconds for a small atlas."""
    uses: ClassVar[tuple[str, ...]] = ()
    """Phases whose results it shows where they are there; they run before it."""
    Settings: ClassVar[type[Settings]]
    """Its settings, each with a default and a docstring: ``PHASE.KEY=VALUE`` on the command line."""

    @abstractmethod
    def check(self, subject: Subject, settings: Any) -> None:
        """Raise UserError when something that the phase needs is missing, with what to give it.

        It is called for every phase before the first one starts, so it is quick.
        """

    @abstractmethod
    def items(self, subject: Subject, settings: Any) -> list[Item]:
        """The work of the phase, at least one item."""

    def inputs(self, subject: Subject, settings: Any, item: Item | None) -> Mapping[str, Any]:
        """What else makes an item, or without one the result, beside the settings, the store and the
        sites' SAEs: such as digests of what the settings name."""
        return {}

    @abstractmethod
    def work(self, subject: Subject, settings: Any, item: Item, folder: Path, alive: Alive) -> None:
        """Do an item and leave its outcome as files in the empty ``folder``, which is then committed.

        Raises UserError for an item that fails every time.
        """

    @abstractmethod
    def collect(self, subject: Subject, settings: Any, folders: Mapping[Item, Path]) -> Result:
        """The result of the phase from the folders of its items; an item that failed has none."""

    def draw(self, result: Result, settings: Any, source: str, folder: Path) -> None:  # noqa: B027
        """Draw the phase's plots into ``folder`` as PNG files, at most 1,600 x 2,000 pixels each.

        ``source`` is the line at the foot of every plot, which says what the data is.
        """
