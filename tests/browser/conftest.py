"""A small run whose features have labels, tracks and effects, made without Ray."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from raysae.analysis.phase import Phase
from raysae.analysis.phases.ablation import Ablation
from raysae.analysis.phases.labels import Labels
from raysae.analysis.phases.stability import Stability
from raysae.analysis.phases.tracking import Tracking
from raysae.analysis.results import made_of, write_result
from raysae.analysis.subject import Subject
from raysae.pipeline.analysis import note_phases
from raysae.records.run_files import RunFiles
from scripts.chromium import NAMES, chromium
from tests.atlas.library.conftest import made
from tests.programs import needed


@dataclass(frozen=True)
class Labelled:
    """A run with an analysis."""

    folder: Path

    def copy(self, to: Path) -> Path:
        """A copy, to be altered."""
        shutil.copytree(self.folder, to)
        return to


def analysed(subject: Subject, phase: Phase, work: Path, **options) -> None:
    """Do a phase here, and commit its result."""
    settings = phase.Settings(**options)
    folders = {}
    for item in phase.items(subject, settings):
        folders[item] = work / phase.name / item.key
        folders[item].mkdir(parents=True)
        phase.work(subject, settings, item, folders[item], lambda: None)
    result = phase.collect(subject, settings, folders)
    write_result(
        subject.files, phase, made_of(subject, phase, settings), result, {}, lambda where: None
    )


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Labelled:
    """A run of two layers, at the last token and at all: labels, tracking, ablation; no stability."""
    run = made(tmp_path_factory.mktemp("browsed"), ["source.layers=[1, 2]"])
    work = tmp_path_factory.mktemp("items")
    subject = Subject(str(run.folder), RunFiles(run.folder), str(run.store.path))
    analysed(subject, Ablation(), work, features=3, controls=1, sequences=6)
    analysed(subject, Labels(), work, features=20, top=3, per_band=1)
    analysed(subject, Tracking(), work, permutations=2)
    note_phases(subject.files, {"stability": "one seed a site"})
    return Labelled(run.folder)


@pytest.fixture(scope="session")
def whole(labelled, tmp_path_factory) -> Path:
    """A copy of the run that was compared between layers, too."""
    folder = labelled.copy(tmp_path_factory.mktemp("whole") / "run")
    subject = Subject(str(folder), RunFiles(folder), str(labelled.folder.parents[1] / "store"))
    analysed(subject, Stability(), tmp_path_factory.mktemp("layers"), between=("layers",), draws=1)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page in a real browser, which fails on every error of its scripts."""
    needed(*NAMES)
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
        assert opened.errors == []
