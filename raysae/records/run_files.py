"""The files of a run: written through this module, and sent at once to the run's URI if it has one.

The driver and each worker have a ``RunFiles`` for the copy on their own node. Any code may read a run
folder, but all writing goes through ``RunFiles``, so that every file is also sent to the URI.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysae.config import Recipe
from raysae.errors import UserError
from raysae.identity import Made, identifier
from raysae.records.damage import check_commit, read_object, read_record
from raysae.records.products import Identities
from raysae.records.tables import write_csv, write_table
from raysae.sae.checkpoint import METRICS_FILE
from raysae.sites import Site, site_folders
from raysae.storage.files import remove_folder, replacing_folder, write_json, write_text
from raysae.storage.remote import (
    CHECKPOINT,
    HOME_FILE,
    bind,
    discard,
    discard_archive,
    move,
    pull,
    pull_archive,
    push,
    push_archive,
)

ASIDE = "aside"
"""The folder, beside the trials or sites, for those that are not wanted at present."""
MEMBERS, STOPPED = ".members", ".stopped.json"
DAMAGED = ".damaged"
"""Suffix of a damaged commit, which is kept while the commit is made again."""
RECIPE_FILE = "config.yaml"
"""It is written first and stays; a folder without it is no run, or no longer one."""


class RunFiles:
    """The files of the run in ``path``; if the run has a ``uri``, ``path`` is this node's copy of it."""

    def __init__(
        self,
        path: Path,
        uri: str | None = None,
        identities: Identities | None = None,
        in_work: bool = False,
    ):
        self.path, self.uri, self.in_work = path, uri, in_work
        self._identities = identities or Identities()

    @classmethod
    def of(cls, recipe: Recipe) -> "RunFiles":
        """The files of a recipe's run. Raises UserError when its URI cannot be reached."""
        return RunFiles.at(recipe.run_uri) if recipe.run_uri else RunFiles(recipe.run_folder)

    @classmethod
    def at(cls, uri: str) -> "RunFiles":
        """The files of the run at ``uri``. Raises UserError when it cannot be reached."""
        return RunFiles(bind(uri), uri)

    @property
    def identities(self) -> Identities:
        """Decides whether an existing product is the wanted one."""
        return self._identities

    def for_workers(self) -> "RunFiles":
        """The same files as a small object, to be sent with every task."""
        return RunFiles(self.path, self.uri, self.identities, self.in_work)

    def on_this_node(self) -> "RunFiles":
        """The same files for a worker: in the copy of its own node."""
        if self.uri is None:
            return self
        return RunFiles(bind(self.uri), self.uri, self.identities, self.in_work)

    def check_there(self) -> None:
        """Raise UserError when the folder was deleted while the run is in work.

        Without this, what is written next would make a new folder that holds a part of a run.
        """
        marker = RECIPE_FILE if self.uri is None else HOME_FILE
        if self.in_work and not (self.path / marker).exists():
            raise UserError(
                f"{self.path}: the run folder was deleted, moved or emptied while the run was in work; "
                "put it back to keep what it held, or give the command again to begin anew"
            )

    @property
    def selection_file(self) -> Path:
        """The choice, the candidates and the reasons."""
        return self.path / "selection.json"

    @property
    def controls_file(self) -> Path:
        """What the choice was compared with, and the verdict."""
        return self.path / "controls.json"

    @property
    def controls_folder(self) -> Path:
        """The controls of each site, as the workers made them."""
        return self.path / "controls"

    @property
    def scaling_file(self) -> Path:
        """The law of scaling that was fitted to the trials, or why there is none."""
        return self.path / "scaling.json"

    @property
    def trials_file(self) -> Path:
        """The table of trials."""
        return self.path / "trials.parquet"

    @property
    def study_file(self) -> Path:
        """The copy of the search for ``optuna-dashboard``."""
        return self.path / "study.db"

    @property
    def sweet_spot(self) -> Path:
        """The folder of the chosen SAE."""
        return self.path / "sweet_spot"

    @property
    def atlas_metrics_file(self) -> Path:
        """The table of the atlas's sites."""
        return self.path / "atlas" / "metrics.parquet"

    @property
    def atlas_metrics_csv(self) -> Path:
        """The same table as text."""
        return self.atlas_metrics_file.with_suffix(".csv")

    @property
    def report_page(self) -> Path:
        """The page of the report."""
        return self.path / "report" / "index.html"

    def trial(self, number: int) -> Path:
        """The folder of trial ``number``."""
        return self.path / "trials" / f"{number:03d}"

    def atlas_site(self, site: Site) -> Path:
        """The folder of ``site`` in the atlas."""
        return self.path / "atlas" / site.folder

    def committed_sites(self) -> list[Path]:
        """The folders of the sites that the atlas has committed."""
        markers = site_folders(self.path / "atlas", METRICS_FILE)
        return sorted(marker.parent for marker in markers)

    def write_json(self, file: Path, content: Any) -> None:
        """Write a JSON file and send it. Raises OSError, or UserError when the URI fails."""
        self.check_there()
        write_json(file, content)
        push(file)

    def write_text(self, file: Path, text: str) -> None:
        """Write a text file and send it. Raises OSError, or UserError when the URI fails."""
        self.check_there()
        write_text(file, text)
        push(file)

    def write_table(self, file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as Parquet and send them. Raises OSError, or UserError when the URI fails."""
        self.check_there()
        write_table(file, rows)
        push(file)

    def write_atlas_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the atlas's table as CSV and as Parquet. Raises what ``write_table`` raises."""
        self.check_there()
        write_csv(self.atlas_metrics_csv, rows)
        push(self.atlas_metrics_csv)
        self.write_table(self.atlas_metrics_file, rows)

    def remove_atlas_metrics(self) -> None:
        """Remove the atlas's table, here and at the run's URI."""
        self.remove(self.atlas_metrics_file)
        self.remove(self.atlas_metrics_csv)

    @contextmanager
    def replacing_folder(self, folder: Path) -> Iterator[Path]:
        """A temporary folder to fill; it replaces ``folder`` when the block succeeds, and is sent."""
        self.check_there()
        with replacing_folder(folder) as temporary:
            yield temporary
            self.check_there()
        push(folder)

    def remove(self, path: Path) -> None:
        """Remove a file or folder, here and at the run's URI."""
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
        discard(path)

    def send(self, path: Path | None = None) -> None:
        """Send what is new in a file or folder (by default the whole run) to the run's URI."""
        push(self.path if path is None else path)

    def fetch(self, path: Path | None = None) -> bool:
        """Fetch what a file or folder (by default the whole run) has at the run's URI and lacks here.

        Returns whether there was anything. The file that marks a commit as complete is fetched last.
        """
        return pull(self.path if path is None else path, last=METRICS_FILE)

    def send_commit(self, folder: Path) -> None:
        """Send a committed SAE's folder; the file that marks it as complete is sent last."""
        push(folder.with_suffix(MEMBERS))
        push(folder, last=METRICS_FILE)

    def record(self, folder: Path) -> dict[str, Any] | None:
        """The record of the SAE committed in ``folder``, here or at the run's URI; None without one.

        Raises UserError when the record is damaged.
        """
        file = folder / METRICS_FILE
        if not file.is_file():
            self.check_there()
            pull(folder, last=METRICS_FILE)  # committed by another node
        return read_record(folder) if file.is_file() else None

    def set_damaged_aside(self) -> list[str]:
        """Rename each damaged commit to ``NAME.damaged``, so that it is made again; what was found, a
        line each."""
        sites = site_folders(self.path / "atlas")
        folders = [*self._trial_folders(), *(site for site in sorted(sites) if not site.suffix)]
        return [
            f"{error}; it is made again, and what was there is now in {self._set_damaged_aside(folder)}"
            for folder in folders
            if (error := self._damage(folder)) is not None
        ]

    def _damage(self, folder: Path) -> UserError | None:
        """What is wrong with the commit in ``folder``; None for a sound one."""
        error = _damage(folder)
        if error is None or self.uri is None:
            return error
        remove_folder(folder)  # perhaps only this node's copy is damaged
        return _damage(folder) if pull(folder, last=METRICS_FILE) else None

    def _trial_folders(self) -> list[Path]:
        folders = (self.path / "trials").glob("[0-9]*")
        return sorted(folder for folder in folders if folder.is_dir() and not folder.suffix)

    def _set_damaged_aside(self, folder: Path) -> Path:
        place = folder.with_suffix(DAMAGED)
        remove_folder(place)
        os.replace(folder, place)
        discard(folder)
        return place

    def committed(self, folder: Path, wanted: Made) -> dict[str, Any] | None:
        """The record of the SAE in ``folder`` if it was made as ``wanted``.

        Otherwise an SAE that was set aside and was made as ``wanted`` is restored to ``folder``.
        None when there is none.
        """
        record = self.record(folder)
        if record is not None and self.identities.is_wanted(record, wanted):
            return record
        return self._restored(folder, wanted)

    def stopped(self, folder: Path, wanted: Made) -> dict[str, Any] | None:
        """The record of the trial of ``folder`` if it was stopped early and was made as ``wanted``."""
        file = folder.with_suffix(STOPPED)
        pull(file)
        record = _stopped_record(file)
        return record if record is not None and self.identities.is_wanted(record, wanted) else None

    def holds(self, *products: str) -> bool:
        """Whether anything is in a folder of products, such as ``trials``, in work or committed."""
        folder = self.path.joinpath(*products)
        return folder.is_dir() and any(folder.iterdir())

    def checkpoint(self, folder: Path) -> Path:
        """The checkpoint of a training that will be committed in ``folder``; fetched if not here."""
        checkpoint = folder.with_suffix(CHECKPOINT)
        pull_archive(checkpoint)
        return checkpoint

    def send_checkpoint(self, checkpoint: Path) -> None:
        """Send a checkpoint to the run's URI, if it has one."""
        push_archive(checkpoint)

    def remove_checkpoint(self, checkpoint: Path) -> None:
        """Remove a checkpoint, here and at the run's URI."""
        remove_folder(checkpoint)
        discard_archive(checkpoint)

    def set_aside(self, folder: Path) -> None:
        """Move a committed SAE that is not wanted at present to ``aside``.

        Other files of that trial or site are removed.
        """
        record = self.record(folder)
        made = self.identities.made(record) if record is not None else None
        if made is not None:
            place = self._aside(folder) / identifier(made)
            for suffix in (MEMBERS, ""):  # the folder last: it marks the move as complete
                there = folder.with_suffix(suffix) if suffix else folder
                if there.exists() and not (place.with_suffix(suffix) if suffix else place).exists():
                    move(there, place.with_suffix(suffix) if suffix else place)
        for rest in sorted(folder.parent.glob(f"{folder.name}*")):
            if rest == folder or rest.name.startswith(f"{folder.name}."):
                self.remove(rest)

    def _restored(self, folder: Path, wanted: Made) -> dict[str, Any] | None:
        for place in self._candidates_aside(folder, wanted):
            record = self.record(place)
            if record is not None and self.identities.is_wanted(record, wanted):
                if folder.exists():
                    self.set_aside(folder)
                if place.with_suffix(MEMBERS).exists():
                    move(place.with_suffix(MEMBERS), folder.with_suffix(MEMBERS))
                move(place, folder)
                return record
        return None

    def _candidates_aside(self, folder: Path, wanted: Made) -> list[Path]:
        """SAEs set aside that may be the wanted one; the most likely first."""
        aside = self._aside(folder)
        if self.uri is not None:
            pull(aside, last=METRICS_FILE)
        if not aside.is_dir():
            return []
        likely = identifier(wanted)
        places = [path for path in aside.iterdir() if path.is_dir() and not path.suffix]
        return sorted(places, key=lambda path: (path.name != likely, path.name))

    def _aside(self, folder: Path) -> Path:
        """The folder for SAEs that are not wanted in ``folder``; all trials share one."""
        root, *rest = folder.relative_to(self.path).parts
        site = Path(*rest) if root == "atlas" else Path()
        return self.path / root / ASIDE / site


def _damage(folder: Path) -> UserError | None:
    """What is wrong with the commit in ``folder``; None for a sound one."""
    try:
        check_commit(folder)
    except UserError as error:
        return error
    return None


def _stopped_record(file: Path) -> dict[str, Any] | None:
    """The record of a trial that was stopped; None without one, or when it is damaged: the trial is
    then trained again."""
    if not file.is_file():
        return None
    try:
        record = read_object(file)
    except UserError:
        return None
    whole = isinstance(record.get("last"), dict) and isinstance(record.get("reason"), str)
    return record if whole else None
