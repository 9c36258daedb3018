"""Running phases: all are checked first, then each does its items on the pool and commits its result."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
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
from raysae.cluster.pool import Work, map_committed
from raysae.cluster.worker import prepare_worker
from raysae.config import ResourcesConfig
from raysae.console.board import console
from raysae.errors import UserError
from raysae.identity import identifier
from raysae.records.events import Analysed, Committed, Events, Failed
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
    for one in planned:
        name = one.phase.name
        if committed_result(subject, one.phase, one.settings) is not None:
            analysis.folders[name] = result_folder(subject.files, name)
            console.print(f"Analysis: {name} is there already")
            continue
        try:
            analysis.folders[name] = _run(
                subject, one, placement, resources, events, source, analysis
            )
        except UserError as error:
            analysis.failures.append(f"{name}: {error}")
    return analysis


def _run(
    subject: Subject, one: Planned, placement: Callable[[], Placement], resources: ResourcesConfig,
    events: Events, source: str, analysis: Analysis,
) -> Path:  # fmt: skip
    phase, settings = one.phase, one.settings
    items = phase.items(subject, settings)
    made = {item: made_of(subject, phase, settings, item) for item in items}
    done: dict[Item, Path] = {}
    failed: dict[str, str] = {}

    def committed(item: Item) -> bool | None:
        return committed_item(subject.files, phase, item, made[item]) is not None or None

    work = Work(PhaseWorker, (subject, one))
    with (
        events.work(f"Analysis: {phase.name}", len(items)) as emit,
        closing(
            map_committed(
                items, work, committed=committed, placement=placement(), retries=resources.retries,
                hang_seconds=resources.hang_seconds,
            )
        ) as outcomes,
    ):  # fmt: skip
        for item, outcome in outcomes:
            listed = Listed(f"analysis/{phase.name}/{item.key}/{identifier(made[item])}", item.key)
            folder = committed_item(subject.files, phase, item, made[item])
            if folder is None:
                failed[item.key] = str(outcome.failed)
                emit(Failed(listed, failed[item.key]))
                continue
            done[item] = folder
            emit(Committed(listed, {}, folder))
    if not done:
        raise UserError(
            f"none of its {len(items)} items could be done: {next(iter(failed.values()))}"
        )
    found = phase.collect(subject, settings, {item: done[item] for item in items if item in done})
    analysis.failures += [f"{phase.name}, {key}: {reason}" for key, reason in failed.items()]
    folder = write_result(
        subject.files, phase, made_of(subject, phase, settings), found, failed,
        lambda folder: phase.draw(found, settings, source, folder),
    )  # fmt: skip
    events.emit(Analysed(phase.name, found.figures, folder))
    if found.brief:
        console.print(f"  {phase.name}: {found.brief}")
    return folder


class PhaseWorker:
    """Does items of one phase in a process of the pool; what it has opened stays open."""

    def __init__(self, subject: Subject, one: Planned):
        self.subject = subject.sent(prepare_worker())
        self.phase, self.settings = one.phase, one.settings

    def hung_file(self, item: Item) -> Path:
        """Where the stack is written if the item hangs."""
        return item_folder(self.subject.files, self.phase, item).with_suffix(".hung.txt")

    def do(self, item: Item, alive: Alive) -> bool:
        """Do an item and commit its folder."""
        made = made_of(self.subject, self.phase, self.settings, item)
        files = self.subject.files
        if committed_item(files, self.phase, item, made) is None:
            with files.replacing_folder(item_folder(files, self.phase, item)) as folder:
                self.phase.work(self.subject, self.settings, item, folder, alive)
                write_json(folder / MADE_FILE, made)
        return True
