"""Running phases: all are checked first, then each does its items on the pool and commits its result."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysae.analysis.phase import Alive, Item, Phase
from raysae.analysis.registry import settings_of
from raysae.analysis.results import (
    MADE_FILE,
    committed_item,
    committed_result,
    item_folder,
    made_of,
    result_folder,
    write_result,
)
from raysae.analysis.subject import Subject
from raysae.cluster.placement import Placement
from raysae.cluster.pool import Outcome, Work, map_committed
from raysae.cluster.worker import prepare_worker
from raysae.config import ResourcesConfig
from raysae.console.board import console
from raysae.errors import UserError, in_one_line
from raysae.identity import Made, identifier
from raysae.records.events import Analysed, Committed, Event, Events, Failed
from raysae.records.events import Item as Listed
from raysae.storage.files import write_json


@dataclass(frozen=True)
class Planned:
    """A phase that will run, with its settings."""

    phase: Phase
    settings: Any


@dataclass
class Analysis:
    """What an analysis has left."""

    folders: dict[str, Path] = field(default_factory=dict)
    """The result's folder of each phase that has one."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Phases that were not run, with the reason."""
    failures: list[str] = field(default_factory=list)
    """Phases and items that failed, a line each."""


def plan(
    subject: Subject, phases: Sequence[Phase], options: Mapping[str, Mapping[str, Any]], asked: bool
) -> tuple[list[Planned], dict[str, str]]:
    """The phases whose needs are met, and why the others are not run.

    With ``asked`` every phase was asked for by name, and UserError says what is missing, a line each.
    """
    planned, skipped = [], {}
    for phase in phases:
        settings = settings_of(phase, options.get(phase.name, {}))
        try:
            phase.check(subject, settings)
            planned.append(Planned(phase, settings))
        except UserError as error:
            skipped[phase.name] = str(error)
    if asked and skipped:
        raise UserError("\n".join(f"phase {name}: {reason}" for name, reason in skipped.items()))
    return planned, skipped


def is_done(subject: Subject, planned: Sequence[Planned]) -> bool:
    """Whether every phase has its result already."""
    return all(committed_result(subject, one.phase, one.settings) for one in planned)


def run(
    subject: Subject, planned: Sequence[Planned], placement: Callable[[], Placement],
    resources: ResourcesConfig, events: Events, source: str,
) -> Analysis:  # fmt: skip
    """Run what is missing of the phases; ``placement`` connects to Ray when it is first called.

    ``source`` is the line at the foot of plots. A phase that fails costs only itself.
    """
    analysis = Analysis()
    for together in rounds(planned):
        missing = []
        for one in together:
            if committed_result(subject, one.phase, one.settings) is None:
                missing.append(one)
                continue
            analysis.folders[one.phase.name] = result_folder(subject.files, one.phase.name)
            console.print(f"Analysis: {one.phase.name} is there already")
        if missing:
            Round(subject, missing, events, source, analysis).run(placement(), resources)
    return analysis


def rounds(planned: Sequence[Planned]) -> list[list[Planned]]:
    """The phases in rounds: one that uses others comes in a later round than they."""
    numbers: dict[str, int] = {}
    for one in planned:  # each comes after those that it uses
        before = [numbers[name] for name in one.phase.uses if name in numbers]
        numbers[one.phase.name] = max(before, default=-1) + 1
    return [
        [one for one in planned if numbers[one.phase.name] == number]
        for number in range(max(numbers.values(), default=-1) + 1)
    ]


@dataclass(frozen=True)
class Task:
    """An item of a phase, as the pool has it."""

    phase: str
    item: Item


class Round:
    """Phases whose items are done by one pool; each is collected as soon as its last item has ended."""

    def __init__(
        self, subject: Subject, planned: Sequence[Planned], events: Events, source: str,
        analysis: Analysis,
    ):  # fmt: skip
        self.subject, self.events, self.source, self.analysis = subject, events, source, analysis
        self.planned = {one.phase.name: one for one in planned}
        self.items: dict[str, list[Item]] = {}
        for one in planned:
            with self._failing(one.phase.name):
                self.items[one.phase.name] = one.phase.items(subject, one.settings)
        tasks = [Task(name, item) for name, items in self.items.items() for item in items]
        self.made = {task: self._made(task) for task in tasks}
        self.left = {name: len(items) for name, items in self.items.items()}
        self.done: dict[str, dict[Item, Path]] = {name: {} for name in self.items}
        self.failed: dict[str, dict[str, str]] = {name: {} for name in self.items}

    def run(self, placement: Placement, resources: ResourcesConfig) -> None:
        """Do the items that are missing, and collect every phase."""

        def committed(task: Task) -> bool | None:
            return self._folder(task) is not None or None

        work = Work(PhaseWorker, (self.subject, tuple(self.planned.values())))
        outcomes = map_committed(
            list(self.made), work, committed=committed, placement=placement,
            retries=resources.retries, hang_seconds=resources.hang_seconds,
            label=lambda task: f"{task.phase} {task.item.key}",
        )  # fmt: skip
        with self.events.work("Analysis", len(self.made)) as emit, closing(outcomes):
            for task, outcome in outcomes:
                emit(self._ended(task, outcome))
                self.left[task.phase] -= 1
                if not self.left[task.phase]:
                    with self._failing(task.phase):
                        self._collect(task.phase)

    def _ended(self, task: Task, outcome: Outcome[bool]) -> Event:
        """Note how an item ended; the event that tells it."""
        key = f"analysis/{task.phase}/{task.item.key}/{identifier(self.made[task])}"
        listed = Listed(key, f"{task.phase} {task.item.key}")
        folder = self._folder(task)
        if folder is None:
            reason = self.failed[task.phase][task.item.key] = str(outcome.failed)
            return Failed(listed, reason)
        self.done[task.phase][task.item] = folder
        return Committed(listed, {}, folder)

    def _collect(self, name: str) -> None:
        """Commit the result of a phase. Raises UserError when none of its items could be done."""
        one, done, failed = self.planned[name], self.done[name], self.failed[name]
        phase, settings, subject = one.phase, one.settings, self.subject
        if not done:
            reason = next(iter(failed.values()), "it has none")
            raise UserError(f"none of its {len(self.items[name])} items could be done: {reason}")
        folders = {item: done[item] for item in self.items[name] if item in done}
        found = phase.collect(subject, settings, folders)
        self.analysis.failures += [f"{name}, {key}: {reason}" for key, reason in failed.items()]
        folder = write_result(
            subject.files, phase, made_of(subject, phase, settings), found, failed,
            lambda folder: phase.draw(found, settings, self.source, folder),
        )  # fmt: skip
        self.events.emit(Analysed(name, found.figures, folder))
        self.analysis.folders[name] = folder
        if found.brief:
            console.print(f"  {name}: {found.brief}")

    def _made(self, task: Task) -> Made:
        one = self.planned[task.phase]
        return made_of(self.subject, one.phase, one.settings, task.item)

    def _folder(self, task: Task) -> Path | None:
        phase = self.planned[task.phase].phase
        return committed_item(self.subject.files, phase, task.item, self.made[task])

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """Let an error in the block cost only the phase ``name``."""
        try:
            yield
        except UserError as error:
            self.analysis.failures.append(f"{name}: {error}")
        except Exception as error:
            logging.getLogger(__name__).debug("phase %s failed", name, exc_info=True)
            self.analysis.failures.append(f"{name}: {in_one_line(error)}")


class PhaseWorker:
    """Does items of phases in a process of the pool; what it has opened stays open."""

    def __init__(self, subject: Subject, planned: Sequence[Planned]):
        self.subject = subject.sent(prepare_worker())
        self.planned = {one.phase.name: one for one in planned}

    def hung_file(self, task: Task) -> Path:
        """Where the stack is written if the item hangs."""
        phase = self.planned[task.phase].phase
        return item_folder(self.subject.files, phase, task.item).with_suffix(".hung.txt")

    def do(self, task: Task, alive: Alive) -> bool:
        """Do an item and commit its folder."""
        one, files = self.planned[task.phase], self.subject.files
        made = made_of(self.subject, one.phase, one.settings, task.item)
        if committed_item(files, one.phase, task.item, made) is None:
            with files.replacing_folder(item_folder(files, one.phase, task.item)) as folder:
                one.phase.work(self.subject, one.settings, task.item, folder, alive)
                write_json(folder / MADE_FILE, made)
        return True
