"""The files of a run: written here alone, and sent at once to the URI at which the run lives, if any.

A driver and its workers each hold a ``RunFiles`` on the copy of their own node. What is in a run
folder is read by anybody; what goes into it goes through here, so that nothing is forgotten.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysae.config import Recipe
from raysae.identity import Made, identifier
from raysae.records.products import Identities
from raysae.records.tables import write_table
from raysae.sae.checkpoint import METRICS_FILE
from raysae.sites import Site
from raysae.storage.files import read_json, remove_folder, replacing_folder, write_json, write_text
from raysae.storage.remote import (
    CHECKPOINT,
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
"""The folder, beside trials or sites, of those that are not wanted at present."""
MEMBERS, STOPPED = ".members", ".stopped.json"


class RunFiles:
    """The files of the run in ``path``, which is this node's copy where the run lives at ``uri``."""

    def __init__(self, path: Path, uri: str | None = None, identities: Identities | None = None):
        self.path, self.uri = path, uri
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
        """How to tell whether a product that is there is the one that is wanted."""
        return self._identities

    def for_workers(self) -> "RunFiles":
        """The same files, small enough to be sent with every task."""
        return RunFiles(self.path, self.uri, self.identities)

    def on_this_node(self) -> "RunFiles":
        """The same files for a worker: on its own node's copy."""
        return self if self.uri is None else RunFiles(bind(self.uri), self.uri, self.identities)

    @property
    def selection_file(self) -> Path:
        return self.path / "selection.json"

    @property
    def trials_file(self) -> Path:
        return self.path / "trials.parquet"

    @property
    def study_file(self) -> Path:
        return self.path / "study.db"

    @property
    def sweet_spot(self) -> Path:
        return self.path / "sweet_spot"

    @property
    def atlas_metrics_file(self) -> Path:
        return self.path / "atlas" / "metrics.parquet"

    @property
    def report_page(self) -> Path:
        return self.path / "report" / "index.html"

    def trial(self, number: int) -> Path:
        """Where trial ``number`` commits."""
        return self.path / "trials" / f"{number:03d}"

    def atlas_site(self, site: Site) -> Path:
        """Where the atlas commits ``site``."""
        return self.path / "atlas" / site.folder

    def committed_sites(self) -> list[Path]:
        """The folders of the sites that the atlas has committed."""
        markers = (self.path / "atlas").glob(f"layer=*/position=*/{METRICS_FILE}")
        return sorted(marker.parent for marker in markers)

    def write_json(self, file: Path, content: Any) -> None:
        write_json(file, content)
        push(file)

    def write_text(self, file: Path, text: str) -> None:
        write_text(file, text)
        push(file)

    def write_table(self, file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        write_table(file, rows)
        push(file)

    @contextmanager
    def replacing_folder(self, folder: Path) -> Iterator[Path]:
        """A temporary folder to fill; it takes the place of ``folder`` when the block succeeds."""
        with replacing_folder(folder) as temporary:
            yield temporary
        push(folder)

    def remove(self, path: Path) -> None:
        """Remove a file or folder, here and where the run lives."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        discard(path)

    def send(self, path: Path | None = None) -> None:
        """Send what is new in a file or folder (the whole run's, by default) to where the run lives."""
        push(self.path if path is None else path)

    def fetch(self, path: Path | None = None) -> bool:
        """Fetch what is there of a file or folder (the whole run, by default) and not here; whether
        there was any. A commit's marker comes last."""
        return pull(self.path if path is None else path, last=METRICS_FILE)

    def send_commit(self, folder: Path) -> None:
        """Send a committed SAE's folder; its marker goes last."""
        push(folder.with_suffix(MEMBERS))
        push(folder, last=METRICS_FILE)

    def record(self, folder: Path) -> dict[str, Any] | None:
        """The record of the SAE committed in ``folder``, here or where the run lives."""
        file = folder / METRICS_FILE
        if not file.is_file():
            pull(folder, last=METRICS_FILE)  # committed by another node
        return read_json(file) if file.is_file() else None

    def committed(self, folder: Path, wanted: Made) -> dict[str, Any] | None:
        """The record of the SAE in ``folder`` when it was made as ``wanted``.

        Otherwise one that was set aside earlier and was made so takes its place.
        """
        record = self.record(folder)
        if record is not None and self.identities.is_wanted(record, wanted):
            return record
        return self._taken_back(folder, wanted)

    def stopped(self, folder: Path, wanted: Made) -> dict[str, Any] | None:
        """The record of the trial that was stopped early in ``folder``, when it was made as
        ``wanted``."""
        file = folder.with_suffix(STOPPED)
        pull(file)
        record = read_json(file) if file.is_file() else None
        return record if record is not None and self.identities.is_wanted(record, wanted) else None

    def checkpoint(self, folder: Path) -> Path:
        """Where a training that is to be committed in ``folder`` has its checkpoint, fetched when it
        is not here."""
        checkpoint = folder.with_suffix(CHECKPOINT)
        pull_archive(checkpoint)
        return checkpoint

    def send_checkpoint(self, checkpoint: Path) -> None:
        push_archive(checkpoint)

    def remove_checkpoint(self, checkpoint: Path) -> None:
        remove_folder(checkpoint)
        discard_archive(checkpoint)

    def set_aside(self, folder: Path) -> None:
        """Keep a committed SAE that is not wanted at present, under ``aside``; what else is left of
        that trial or site is removed."""
        record = self.record(folder)
        made = self.identities.made(record) if record is not None else None
        if made is not None:
            place = self._aside(folder) / identifier(made)
            for suffix in (MEMBERS, ""):  # the folder last: where it is, all is there
                there = folder.with_suffix(suffix) if suffix else folder
                if there.exists() and not (place.with_suffix(suffix) if suffix else place).exists():
                    move(there, place.with_suffix(suffix) if suffix else place)
        for rest in sorted(folder.parent.glob(f"{folder.name}*")):
            if rest == folder or rest.name.startswith(f"{folder.name}."):
                self.remove(rest)

    def _taken_back(self, folder: Path, wanted: Made) -> dict[str, Any] | None:
        for place in self._kept_aside(folder, wanted):
            record = self.record(place)
            if record is not None and self.identities.is_wanted(record, wanted):
                if folder.exists():
                    self.set_aside(folder)
                if place.with_suffix(MEMBERS).exists():
                    move(place.with_suffix(MEMBERS), folder.with_suffix(MEMBERS))
                move(place, folder)
                return record
        return None

    def _kept_aside(self, folder: Path, wanted: Made) -> list[Path]:
        """SAEs set aside that may be the wanted one, the likeliest first."""
        aside = self._aside(folder)
        if self.uri is not None:
            pull(aside, last=METRICS_FILE)
        if not aside.is_dir():
            return []
        likely = identifier(wanted)
        places = [path for path in aside.iterdir() if path.is_dir() and not path.suffix]
        return sorted(places, key=lambda path: (path.name != likely, path.name))

    def _aside(self, folder: Path) -> Path:
        """Where SAEs go that are not wanted in ``folder``: trials of any number share one place."""
        root, *rest = folder.relative_to(self.path).parts
        site = Path(*rest) if root == "atlas" else Path()
        return self.path / root / ASIDE / site
